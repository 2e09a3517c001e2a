"""The figures of a run, and what each system draws its own with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import product
from pathlib import Path
from textwrap import fill
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
from matplotlib.transforms import Bbox, BboxBase
from scipy.optimize import isotonic_regression

from pudica.analysis.runs import Run, open_run
from pudica.clients.runtime.systems import systems

SAVING: dict[str, Any] = {"dpi": 130, "bbox_inches": "tight", "pad_inches": 0.12}
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
CHANNELS = {1: ("",), 3: ("red", "green", "blue")}
HORIZONTAL: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
VERTICAL: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def plot(run: str | Path) -> list[Path]:
    """Draw all figures of a run for which there are measurements.

    The run may be in progress. It is named, and errors raised, as by :func:`pudica.analysis.load`.

    Returns
    -------
    list of Path
        ``RUN/plots/*.png``. For each case of a THEMIS competition: ``CASE-images.png``
        (Figure 3 of the paper), ``CASE-accuracy.png`` (Figure 4),
        ``CASE-plain-against-noisy.png`` (Figure 5) and ``CASE-sigma-mu.png``; for several
        cases together ``ranks.png``. Of split learning: ``training.png`` (Figures 5 to 7 of
        paper 004) and ``trade-off.png`` (Figures 3 and 4 of paper 002). Of DLMT:
        ``training.png``, ``measures.png`` (Table III) and ``seen.png``. Of FaceMix:
        ``training.png``, ``trade-off.png`` (Figure 4 of paper 003) and ``attributes.png``.
    """
    opened = open_run(run)
    folder = opened.directory / "plots"
    with plot_style():
        return [save(figure, folder / f"{name}.png") for name, figure in draw_figures(opened)]


def figures(run: str | Path) -> Figures:
    """Draw the figures that :func:`plot` writes, without writing them.

    Returns
    -------
    dict of str to Figure
        By the name of the file that :func:`plot` writes, without ``.png``. A notebook shows the
        figures, all or one.
    """
    opened = open_run(run)
    with plot_style():
        return Figures(draw_figures(opened))


def draw_figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for everything that was measured, to be drawn in :func:`plot_style`."""
    system = systems().get(run.info.get("system", ""))
    draw = system.part("figures") if system else None
    found = draw(run) if draw else ()
    return ((name, figure) for name, figure in found if figure is not None)


class Figures(dict[str, Figure]):
    """Figures by name, all of which a notebook shows."""

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        for name, figure in self.items():
            display(Image(render_png(figure), alt=name))


class RunFigure(Figure):
    """A figure that a notebook shows, whether or not ``pyplot`` is in use there."""

    def _repr_png_(self) -> bytes:
        return render_png(self)


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in Pudica's style, independent of the caller's matplotlib settings."""
    look: dict[Any, Any] = {**mpl.rcParamsDefault, **RC_PARAMS}
    # The backend is the caller's choice; nothing here uses it.
    with mpl.rc_context({k: v for k, v in look.items() if not k.startswith("backend")}):
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure; sizes in inches."""
    figure = RunFigure((width, height), layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def draw_image_rows(rows: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw as many images (N, C, H, W) in [0, 1] per kind side by side, a labelled row each.

    Images of NaN leave their places empty.
    """
    count, _, height, width = next(iter(rows.values())).shape
    across = IMAGE_INCHES * count * width / height
    figure = new_figure(max(across + 1.7, 5.5), (IMAGE_INCHES + 0.12) * len(rows) + 0.5, title)
    column = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (label, images) in zip(column, rows.items(), strict=True):
        axes.imshow(_concatenate_images(images), interpolation="nearest")
        axes.set_anchor("W")
        axes.set_axis_off()
        place = (-0.02 * 8 / count, 0.5)
        axes.text(*place, label, transform=axes.transAxes, ha="right", va="center")
    return figure


def _concatenate_images(images: np.ndarray) -> np.ndarray:
    """Join images (N, C, H, W) side by side with transparent gaps: (H, W', 4)."""
    count, _, height, width = images.shape
    gap = max(1, round(width / 16))
    wide = np.zeros((height, count * (width + gap) - gap, 4))
    for i, image in enumerate(images.clip(0, 1)):
        if not np.isnan(image).all():
            place = wide[:, i * (width + gap) :][:, :width]
            place[..., :3], place[..., 3] = image.transpose(1, 2, 0), 1
    return wide


def draw_heat_maps(
    figure: Figure,
    row: Sequence[Axes],
    maps: Mapping[str, np.ndarray],
    label: str,
    colours: str,
    span: tuple[float, float],
) -> None:
    """Draw the channels of maps (C, H, W) side by side, on one scale with a colour bar."""
    channels = max(map(len, maps.values()))
    names = CHANNELS.get(channels, tuple(map(str, range(channels))))
    cells = [(kind, i) for kind in maps for i in range(channels)]
    for axes, (kind, i) in zip(row, cells, strict=True):
        values = maps[kind][i]
        shown = axes.imshow(values, cmap=colours, vmin=span[0], vmax=span[1])
        axes.set_axis_off()
        axes.set_title(f"{kind} {names[i]}\nmean {format_number(values.mean())}", fontsize=8.5)
    figure.colorbar(shown, ax=list(row), label=label, pad=0.02)


def stretch(images: np.ndarray, least: float) -> np.ndarray:
    """Map each image's values (N, C, H, W) to [0, 1]; a span below ``least`` counts as that."""
    low, high = (end(images, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    stretched: np.ndarray = (images - low) / np.maximum(high - low, least)
    return stretched


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **SAVING)
    return path


def render_png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    buffer = BytesIO()
    with plot_style():
        figure.savefig(buffer, format="png", **SAVING)
    return buffer.getvalue()


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


def draw_ranks(table: pd.DataFrame, looks: Mapping[str, Any], title: str) -> Figure:
    """Draw each row's path through the columns, its rank in each in a dot, unless missing.

    ``looks`` are by row, as returned by :func:`assign_styles`.
    """
    figure = new_figure(2.6 + 1.2 * table.shape[1], 1.2 + 0.34 * len(table), title)
    axes = figure.subplots()
    # Equal ranks are drawn below each other, both with the better number.
    places = table.astype(float).rank(method="first")
    for name in table.index[places.notna().any(axis="columns")]:
        colour = looks[name]["color"]
        path = [(x, y) for x, y in enumerate(places.loc[name]) if not math.isnan(y)]
        axes.plot(*zip(*path, strict=True), color=colour, linestyle=looks[name]["linestyle"])
        axes.plot(*zip(*path, strict=True), "o", color=colour, markersize=13)
        inside: dict[str, Any] = {"color": "white", "fontsize": 8, "fontweight": "bold"}
        for x, y in path:
            rank = str(table.loc[name].iloc[x])
            axes.text(x, y, rank, ha="center", va="center_baseline", **inside)
        for end, side in ((path[0], -1), (path[-1], 1)):
            align: dict[str, Any] = {"ha": HORIZONTAL[side], "va": "center"}
            axes.annotate(name, end, (11 * side, 0), textcoords="offset points", **align)
    columns = [fill(str(name).replace("_", " "), 14) for name in table]
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(len(table) + 0.6, 0.4)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


def draw_against_diagonal(
    figure: Figure,
    axes: Axes,
    across: pd.Series,
    up: pd.Series,
    error: pd.Series,
    looks: Mapping[str, Any],
) -> None:
    """Draw a labelled point with an error bar per row, and the diagonal of equal values."""
    for name, look in looks.items():
        axes.errorbar(
            across[name],
            up[name],
            yerr=error[name],
            fmt=look["marker"],
            color=look["color"],
            capsize=2.5,
            elinewidth=1,
        )
    # All points with their error bars are shown, and the upper end of the diagonal.
    axes.set_xlim(*_add_margin(across.min(), across.max(), 0.14))
    top = max(across.max(), (up + error).max())
    axes.set_ylim(*_add_margin((up - error).min(), top, 0.08))
    dashed: dict[str, Any] = {"color": "#999999", "linewidth": 1, "linestyle": (0, (5, 3))}
    axes.axline((0, 0), slope=1, label="no loss", **dashed)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    points = dict(zip(across.index, zip(across, up, strict=True), strict=True))
    label_points(figure, axes, points, {name: look["color"] for name, look in looks.items()})


def _add_margin(low: float, high: float, share: float) -> tuple[float, float]:
    margin = max(share * (high - low), 1.0)
    return low - margin, high + margin


def label_lines(
    figure: Figure, axes: Axes, ends: Mapping[str, float], looks: Mapping[str, Any]
) -> None:
    """Label lines at the right edge of the axes, each as close to its end as possible.

    ``ends`` are in data units, ``looks`` as returned by :func:`assign_styles`.
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


def darken(colour: str) -> str:
    """Return a colour at two thirds of its brightness."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.65 * red, 0.65 * green, 0.65 * blue))


def label_points(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
) -> None:
    """Label points next to them, without overlapping other labels or points."""
    figure.draw_without_rendering()
    dots = [axes.transData.transform(point) for point in points.values()]
    taken: list[BboxBase] = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in dots]
    inside = axes.get_window_extent()
    for name, point in points.items():
        # Excluded from the layout, which would otherwise move the axes under the labels.
        label = axes.annotate(
            name,
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=darken(colours[name]),  # enough for text
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.7, "shrinkA": 0},
        )
        label.set_in_layout(False)
        taken.append(_position_label(label, taken, inside))


def format_number(value: float) -> str:
    """Format a number with two decimals and a typographic minus."""
    return f"{value:.2f}".replace("-", "−")


def _position_label(label: Annotation, taken: Sequence[BboxBase], inside: BboxBase) -> BboxBase:
    """Move a label to the first free position around its point; return its box."""
    for distance, (right, up) in product((7, 13, 20, 28, 38), SIDES):
        label.set_position((right * distance, up * distance))
        label.set_horizontalalignment(HORIZONTAL[right])
        label.set_verticalalignment(VERTICAL[up])
        # Updates the text's position; this extent includes the line, which may cross others.
        label.get_window_extent()
        box = Text.get_window_extent(label)
        is_inside = inside.contains(*box.min) and inside.contains(*box.max)
        if is_inside and not any(box.fully_overlaps(other) for other in taken):
            break
    return box
