"""Common style of all figures, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

Box = tuple[float, ...]

DPI = 130
IMAGE_INCHES = 0.95
LABEL_GAP = 11.5
RC_PARAMS: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    # Participants' names may contain dollar signs.
    "text.parse_math": False,
}
# Okabe and Ito's palette for all kinds of colour vision, without yellow, which is too faint.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
MARKERS = "osD^vP"
HORIZONTAL: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
VERTICAL: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in Pudica's style, independent of the caller's matplotlib settings."""
    look: dict[Any, Any] = {**mpl.rcParamsDefault, **RC_PARAMS}
    # The backend is the caller's choice; nothing here uses it.
    with mpl.rc_context({k: v for k, v in look.items() if not k.startswith("backend")}):
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure; sizes in inches."""
    figure = Figure((width, height), layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def draw_image_rows(rows: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw images side by side, a labelled row per kind.

    Parameters
    ----------
    rows : mapping of str to ndarray of shape (N, C, H, W)
        In [0, 1], the same number in each row.
    """
    count, _, height, width = next(iter(rows.values())).shape
    across = IMAGE_INCHES * count * width / height
    figure = new_figure(max(across + 1.7, 5.5), (IMAGE_INCHES + 0.12) * len(rows) + 0.5, title)
    column = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (label, images) in zip(column, rows.items(), strict=True):
        axes.imshow(
            _concatenate_images(images), interpolation="nearest", cmap="gray", vmin=0, vmax=1
        )
        axes.set_anchor("W")
        axes.set_axis_off()
        place = (-0.02 * 8 / count, 0.5)
        axes.text(*place, label, transform=axes.transAxes, ha="right", va="center")
    return figure


def _concatenate_images(images: np.ndarray) -> np.ndarray:
    """Join images (N, C, H, W) side by side with white gaps: (H, W') or (H, W', 3)."""
    count, channels, height, width = images.shape
    gap = max(1, round(width / 16))
    wide = np.ones((height, count * (width + gap) - gap, channels))
    for i, image in enumerate(images.clip(0, 1)):
        start = i * (width + gap)
        wide[:, start : start + width] = image.transpose(1, 2, 0)
    return wide[..., 0] if channels == 1 else wide


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.12)
    return path


def assign_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each name a unique combination of colour, dash and marker (up to 21 names)."""
    looks = [{"color": colour, "linestyle": dash} for dash, colour in product(DASHES, COLOURS)]
    return {
        name: {**looks[i % len(looks)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def draw_curves(
    panels: Mapping[str, pd.DataFrame], names: Sequence[str], across: str, title: str
) -> Figure | None:
    """Draw panels of curves below each other; None if there are none.

    Parameters
    ----------
    panels : mapping of str to DataFrame
        By label of the vertical axis: a row per position, a column per line.
    names : sequence of str
        Names of all lines, which determine their styles.
    across : str
        Label of the horizontal axis.
    """
    there = {label: table for label, table in panels.items() if not table.empty}
    if not there:
        return None
    high = max(2.6, 0.17 * len(names))
    figure = new_figure(7.5, 0.8 + high * len(there), title)
    looks = assign_styles(names)
    column = figure.subplots(len(there), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, table) in zip(column, there.items(), strict=True):
        right = max(table.index.max(), 1)
        for name, values in table.items():
            line, look = values.dropna(), looks[str(name)]
            axes.plot(line.index, line, **look, markersize=3.5, clip_on=False)
            # Connect the end of a shorter line to its name.
            axes.hlines(line.iloc[-1], line.index[-1], right, look["color"], "dotted", linewidth=1)
        axes.set_xlim(0, right)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
    column[-1].set_xlabel(across)
    for axes, table in zip(column, there.values(), strict=True):
        if len(names) > 1:
            ends = {str(name): float(table[name].dropna().iloc[-1]) for name in table}
            label_lines(figure, axes, ends, looks)
    return figure


def label_lines(
    figure: Figure, axes: Axes, ends: Mapping[str, float], looks: Mapping[str, Any]
) -> None:
    """Label lines at the right edge of the axes, each as close to its end as possible.

    Parameters
    ----------
    ends : mapping of str to float
        Where each line ends, in data units.
    looks : mapping of str to dict
        As returned by :func:`assign_styles`.
    """
    figure.draw_without_rendering()
    names = sorted(ends, key=lambda name: ends[name])
    right = axes.get_xlim()[1]
    box = axes.get_window_extent()
    points = figure.dpi / 72
    wanted = [axes.transData.transform((right, ends[name]))[1] / points for name in names]
    placed = spread_out(wanted, LABEL_GAP, box.y0 / points, box.y1 / points)
    for name, at, place in zip(names, wanted, placed, strict=True):
        axes.annotate(
            name,
            (right, ends[name]),
            xytext=(30, place - at),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#222222",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "connectionstyle": "arc,angleA=180,armA=9,angleB=0,armB=5,rad=0",
                "color": looks[name]["color"],
                "linestyle": looks[name]["linestyle"],
                "linewidth": 1.3,
                "relpos": (0, 0.5),
                "patchA": None,
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )


def spread_out(values: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Return positions near sorted values, a minimum gap apart and within bounds if they fit."""
    steps = gap * np.arange(len(values))
    nearest = isotonic_regression(np.asarray(values) - steps).x
    return np.asarray(np.clip(nearest, low, max(low, high - steps[-1])) + steps)


def label_points(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
) -> None:
    """Label points next to them, without overlapping other labels or points."""
    figure.draw_without_rendering()
    dots = [axes.transData.transform(point) for point in points.values()]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots]
    inside = axes.get_window_extent().extents
    for name, point in points.items():
        # Excluded from the layout, which would otherwise move the axes under the labels.
        label = axes.annotate(
            name,
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=darken(colours[name]),
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.7, "shrinkA": 0},
        )
        label.set_in_layout(False)
        taken.append(_position_label(label, taken, inside))


def darken(colour: str) -> str:
    """Darken a colour enough for text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.65 * red, 0.65 * green, 0.65 * blue))


def format_number(value: float) -> str:
    """Format a number with two decimals and a typographic minus."""
    return f"{value:.2f}".replace("-", "−")


def _position_label(label: Annotation, taken: Sequence[Box], inside: Box) -> Box:
    """Move a label to the first free position around its point; return its box."""
    for distance, (right, up) in product((7, 13, 20, 28, 38), SIDES):
        label.set_position((right * distance, up * distance))
        label.set_horizontalalignment(HORIZONTAL[right])
        label.set_verticalalignment(VERTICAL[up])
        # Updates the text's position; this extent includes the line, which may cross others.
        label.get_window_extent()
        box = tuple(Text.get_window_extent(label).extents)
        if _contains(box, inside) and not any(_overlap(box, other) for other in taken):
            break
    return box


def _contains(a: Box, b: Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
