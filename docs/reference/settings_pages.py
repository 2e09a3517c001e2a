"""Writes a page of settings for each system, from the schemas that `pudica settings` prints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.rst import escape

from pudica.clients.runtime.systems import systems
from pudica.simulations.settings import (
    Section,
    describe_settings,
    describe_values,
    name_section,
)
from pudica.strategies.loading import find_schema


def setup(app: Sphinx) -> None:
    """Register this as an extension of Sphinx."""
    app.connect("builder-inited", write_pages)


def write_pages(app: Sphinx) -> None:
    """Write the pages into ``settings/``, where the table of contents looks for them."""
    folder = Path(app.srcdir) / "settings"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for system in systems():
        sections = describe_settings(find_schema(system))
        lines = [
            *format_title(system, "="),
            *(line for s in sections for line in format_section(s)),
        ]
        (folder / f"{system}.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")


def format_title(text: str, underline: str) -> list[str]:
    """Return a heading."""
    return [escape(text), underline * len(escape(text)), ""]


def format_section(section: Section) -> Iterator[str]:
    """Yield the lines of a section: a heading, and a list of its settings."""
    if section.head.key:
        yield from format_title(name_section(section), "-")
        if values := describe_values(section.head):
            yield from (f"*{escape(values)}*", "")
    yield from (format_text(section.head.meaning), "")
    for setting in section.settings:
        yield f"``{setting.key}``"
        yield from (f"   *{escape(describe_values(setting))}*", "")
        yield from (f"   {format_text(setting.meaning)}", "")


def format_text(text: str) -> str:
    """Return plain text as reStructuredText; what is in backticks is code."""
    parts = enumerate(text.split("`"))
    return "".join(f"``{part}``" if number % 2 else escape(part) for number, part in parts)
