"""Figures as SVG inside a page: nothing is loaded for them, and they take on its colours."""

from __future__ import annotations

import re
from io import StringIO
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from pudica.models.printable import escape_hidden

IMAGE_DPI = 144
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# What is for programs that read SVG files, or would act on the whole page.
LEFT_OUT = ("metadata", "style")
LENGTHS = ("d", "x", "y")
COLOUR = re.compile(r"#([0-9a-f]{6})\b")
FONT = re.compile(r"font: (?:(bold|[1-9]00) )?([\d.]+px)[^;]*")
FONT_FAMILY = re.compile(r"; font-family: [^;]*")
DECIMALS = re.compile(r"(\.\d\d)\d+")


def take_title(figure: Figure) -> str:
    """Remove a figure's title, with everything else staying in its place, and return it."""
    title = figure.get_suptitle()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.suptitle("")
    return title


def render_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element for an HTML page.

    Its background is transparent, and each colour a variable of CSS that may be left unset:
    ``--x-0072b2`` is ``#0072b2`` by default. Its width in points is the variable ``--width``, its
    font the page's. Hidden characters in texts are escaped.

    Parameters
    ----------
    prefix : str
        Put before the names of its elements, which are unique within a page.
    """
    root = ElementTree.fromstring(escape_hidden(_save(figure), keep="\n"))
    for element in root.iter():
        _adapt(element, prefix)
    width = root.attrib["width"].removesuffix("pt")
    root.attrib = {"viewBox": root.attrib["viewBox"], "style": f"--width: {width}"}
    return ElementTree.tostring(root, encoding="unicode")


def _save(figure: Figure) -> str:
    """Return a figure as an SVG file."""
    file = StringIO()
    # Names of elements hang on the salt, and would be others each time without one.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pudica"}):
        figure.savefig(
            file,
            format="svg",
            dpi=IMAGE_DPI,
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.05,
            metadata=METADATA,
        )
    return file.getvalue()


def _adapt(element: ElementTree.Element, prefix: str) -> None:
    """Make an SVG file's element one of a page."""
    for child in list(element):
        if _local_name(child.tag) in LEFT_OUT:
            element.remove(child)
        elif not (child.tail or "").strip():
            child.tail = None
    if not (element.text or "").strip():
        element.text = None
    element.tag = _local_name(element.tag)
    named = ((_local_name(name), value) for name, value in element.attrib.items())
    element.attrib = {
        name: _adapt_value(name, value, prefix)
        for name, value in named
        # Nothing refers to groups.
        if not (name == "id" and element.tag == "g")
    }


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _adapt_value(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in LENGTHS:
        return DECIMALS.sub(r"\1", value)
    value = value.replace("url(#", f"url(#{prefix}-")
    if name == "style":
        value = COLOUR.sub(r"var(--x-\1, #\1)", value)
        value = FONT_FAMILY.sub("", value)
        value = FONT.sub(lambda font: f"font-size: {font[2]}; font-weight: {font[1] or 400}", value)
    return value
