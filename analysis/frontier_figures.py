"""The frontier's figures: what protection costs, which attack gets how far, and what it sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pudica.analysis.attacks.base import CROSSED, DRAWN, ORIGINAL
from pudica.analysis.drawing import COLOURS, MARKERS, draw_image_rows, label_points, new_figure
from pudica.analysis.frontiers import of_all_releases, order_attacks
from pudica.analysis.runs import Run
from pudica.analysis.spread import INTERVAL, group_by_seed
from pudica.models.files import load_tensors

SHOWN = 4
"""Images of each row of the strip."""
SMALLEST, LARGEST = 20.0, 320.0
"""Areas of points, in square points."""
NAMES = {
    "image": "images recognised",
    "attribute": "classes or attributes read off",
    "identity": "people recognised",
    "membership": "training images found at 1 % false alarms",
    "record": "neighbouring records told apart",
    "key": "keys undone",
}


def draw_frontier(
    runs: Sequence[Run], table: pd.DataFrame, cells: pd.DataFrame
) -> Iterator[tuple[str, Figure | None]]:
    """Yield the name and the figure of each view of the frontier; to be drawn in a plot style.

    ``table`` and ``cells`` are those of these runs, as of :func:`.frontier` and
    :func:`.attack_cells`.
    """
    for goal in ("image", "attribute", "membership"):
        yield f"frontier-{goal}", draw_trade_off(table, goal)
    yield "frontier-attacks", draw_heat_map(cells)
    yield "frontier-images", draw_strip(runs, table)


def draw_trade_off(table: pd.DataFrame, goal: str) -> Figure | None:
    """Draw each method's accuracy against the best attack's success; None if there is none.

    Parameters
    ----------
    table : DataFrame
        As of :func:`.frontier`. The area of a point grows with ``bytes_per_image``; bars are
        intervals over seeds.
    goal : str
        One of :data:`.GOALS`.
    """
    rows = table.dropna(subset=[goal, "accuracy"])
    if rows.empty:
        return None
    figure = new_figure(8.2, 5.6, f"Accuracy against {NAMES[goal]}")
    axes = figure.subplots()
    systems = list(dict.fromkeys(rows["system"]))
    colours = {system: COLOURS[place % len(COLOURS)] for place, system in enumerate(systems)}
    areas = _scale_areas(rows["bytes_per_image"])
    points: dict[str, tuple[float, float]] = {}
    for (_, row), area in zip(rows.iterrows(), areas, strict=True):
        x, y, colour = float(row[goal]), float(row["accuracy"]), colours[row["system"]]
        across, up = _half(row, goal), _half(row, "accuracy")
        axes.errorbar(
            x, y, xerr=across, yerr=up, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.7
        )
        marker = MARKERS[systems.index(row["system"]) % len(MARKERS)]
        axes.scatter(x, y, s=area, color=colour, marker=marker, alpha=0.75, linewidths=0)
        points[_name_row(table, row)] = x, y
    chances = rows[f"{goal}_chance"].astype(float)
    # Methods are attacked in different ways, and what a guess reaches may differ.
    for row_chance, y, system in zip(chances, rows["accuracy"], rows["system"], strict=True):
        axes.plot(row_chance, y, "|", color=colours[system], markersize=9, markeredgewidth=1.6)
    axes.set_xlim(-4, 104)
    margin = max(3.0, 0.12 * float(np.ptp(rows["accuracy"])))
    axes.set_ylim(rows["accuracy"].min() - margin, rows["accuracy"].max() + margin)
    axes.set_xlabel(f"Success of the best attack: {NAMES[goal]} (%); upright: chance")
    axes.set_ylabel("Accuracy (%)")
    for system in systems:
        marker = MARKERS[systems.index(system) % len(MARKERS)]
        axes.scatter([], [], color=colours[system], marker=marker, label=system)
    axes.legend(frameon=False, fontsize=8, loc="lower left", title="area: bytes per image")
    inks = {_name_row(table, row): colours[row["system"]] for _, row in rows.iterrows()}
    label_points(figure, axes, points, inks)
    return figure


def draw_heat_map(cells: pd.DataFrame) -> Figure | None:
    """Draw every attack's success on every method; None if there is none.

    Parameters
    ----------
    cells : DataFrame
        As of :func:`.attack_cells`. A cell is as dark as its success lies above chance; one that
        was not measured is hatched.
    """
    measured = of_all_releases(cells).dropna(subset=["success"])
    if measured.empty:
        return None
    columns = [pair for pair in order_attacks(measured) if pair[0]]
    names = list(dict.fromkeys(_name_row(cells, row) for _, row in cells.iterrows()))
    width = 2.6 + 0.62 * len(columns)
    figure = new_figure(width, 1.9 + 0.27 * len(names), "What each attack gets (%)")
    axes = figure.subplots()
    values = np.full((len(names), len(columns)), math.nan)
    above = values.copy()
    assuming = set()
    for _, row in measured.iterrows():
        if (pair := (row["goal"], row["attack"])) in columns:
            place = names.index(_name_row(cells, row)), columns.index(pair)
            chance = 0.0 if math.isnan(row["chance"]) else float(row["chance"])
            values[place] = row["success"]
            above[place] = max(0.0, (row["success"] - chance) / max(100 - chance, 1e-9))
            assuming |= {pair} if row["assumes"] else set()
    ramp = LinearSegmentedColormap.from_list("success", ["#ffffff", "#D55E00", "#5c2800"])
    axes.imshow(np.ma.masked_invalid(above), cmap=ramp, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, values, above)
    heads = [f"{attack}{' *' if (goal, attack) in assuming else ''}" for goal, attack in columns]
    axes.set_xticks(range(len(columns)), heads, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    goals = [goal for goal, _ in columns]
    for goal in dict.fromkeys(goals):
        first, last = goals.index(goal), len(goals) - goals[::-1].index(goal) - 1
        axes.axvline(first - 0.5, color="white", linewidth=3)
        words = fill(NAMES[goal], max(12, 11 * (last - first + 1)))
        axes.text((first + last) / 2, len(names) - 0.3, words, ha="center", va="top", fontsize=8)
    note = "Darker: further above chance. Hatched: not measured, for a reason."
    axes.set_xlabel(note + (" *: assumes more than the view." if assuming else ""), labelpad=30)
    return figure


def _write_cells(axes: Axes, values: np.ndarray, above: np.ndarray) -> None:
    for y, x in np.ndindex(values.shape):
        if math.isnan(values[y, x]):
            axes.fill_between(
                [x - 0.5, x + 0.5],
                y - 0.5,
                y + 0.5,
                hatch="////",
                facecolor="#f4f4f4",
                edgecolor="#d8d8d8",
                linewidth=0,
            )
            continue
        ink = "white" if above[y, x] > 0.45 else "#222222"
        text = f"{values[y, x]:.0f}" if values[y, x] >= 9.95 else f"{values[y, x]:.1f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)


def draw_strip(runs: Sequence[Run], table: pd.DataFrame) -> Figure | None:
    """Draw what of a few images crossed, and what the best attack made of it, by method.

    Of the first seed of each method; None if no attack kept pictures.
    """
    labels = group_by_seed(runs)
    rows: dict[str, np.ndarray] = {}
    for _, row in table.iterrows():
        name = _name_row(table, row)
        run = next(each for each in runs if labels[each.name] == row["run"])
        # Where nothing was drawn, the images that were picked.
        kind = row["psnr_by"] if isinstance(row["psnr_by"], str) else row["image_by"]
        kept = _load_pictures(run, str(row["case"]), str(kind))
        if kept is not None:
            rows[name] = kept
    if not rows:
        return None
    size = max(images.shape[-1] for images in rows.values())
    high = max(images.shape[-2] for images in rows.values())
    fitted = {name: _fit(images, high, size) for name, images in rows.items()}
    title = f"{SHOWN} images, what crossed of them, and the best that was drawn"
    return draw_image_rows(fitted, title)


def _load_pictures(run: Run, case: str, kind: str) -> np.ndarray | None:
    """Return original, crossed and drawn images behind each other: (3·SHOWN, 3, H, W)."""
    kept = load_tensors(run.directory / case / f"attack-{kind}.safetensors")
    if kept is None or not {ORIGINAL, DRAWN} <= kept[0].keys():
        return None
    original = kept[0][ORIGINAL].numpy()[:SHOWN]
    missing = np.full_like(original, math.nan)
    crossed = kept[0][CROSSED].numpy()[:SHOWN] if CROSSED in kept[0] else missing
    parts = [original, crossed, kept[0][DRAWN].numpy()[:SHOWN]]
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    return np.concatenate([_fit(part, height, width) for part in parts])


def _fit(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return images (N, C, H, W) in colour and enlarged, pixels as blocks, to (N, 3, H', W')."""
    rows = np.arange(height) * images.shape[2] // height
    columns = np.arange(width) * images.shape[3] // width
    enlarged = images[:, :, rows][:, :, :, columns]
    return np.repeat(enlarged, 3, axis=1) if images.shape[1] == 1 else enlarged


def _name_row(table: pd.DataFrame, row: Mapping[str, object] | pd.Series) -> str:
    """Return a method's name: its case, with its system where another one has the same."""
    systems = table["system"][table["case"] == row["case"]].nunique()
    runs = table["run"][(table["case"] == row["case"]) & (table["system"] == row["system"])]
    name = f"{row['case']}" if systems == 1 else f"{row['system']}: {row['case']}"
    return name if len(set(runs)) == 1 else f"{name} ({row['run']})"


def _half(row: pd.Series, name: str) -> float:
    value = float(row.get(f"{name}{INTERVAL}", math.nan))
    return 0.0 if math.isnan(value) else value


def _scale_areas(sizes: pd.Series) -> list[float]:
    """Return areas that grow with the logarithm of sizes."""
    logs = np.log10(sizes.astype(float).clip(lower=1))
    low, high = logs.min(), logs.max()
    if not np.isfinite(low) or high <= low:
        return [80.0] * len(sizes)
    shares = ((logs - low) / (high - low)).fillna(0)
    return [float(SMALLEST + share * (LARGEST - SMALLEST)) for share in shares]
