"""The figures of a competition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pudica.analysis.drawing import (
    HORIZONTAL,
    assign_styles,
    draw_image_rows,
    format_number,
    label_lines,
    label_points,
    new_figure,
)
from pudica.analysis.runs import Run
from pudica.analysis.themis import (
    build_leaderboard,
    competition_settings,
    participant_name,
    themis_protection,
    themis_table2,
    to_mapping,
)
from pudica.models import NoiseGenerator
from pudica.strategies.themis.leaderboard import agreement

RELEASES = ("untrained", "trained")
CHANNELS = {1: ("",), 3: ("red", "green", "blue")}


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for everything that was measured in a competition."""
    cases = list(competition_settings(run).each_case())
    for case in cases:
        for name, draw in CASE_FIGURES.items():
            figure = draw(run, case)
            if figure is not None:
                yield f"{case}-{name}", figure
    figure = draw_ranks(run) if len(cases) > 1 else None
    if figure is not None:
        yield "ranks", figure


def _heading(run: Run, case: str, title: str) -> str:
    only = len(competition_settings(run).each_case()) == 1
    return f"{title} — {run.name}" if only else f"{title} — {run.name}, {case}"


def _arrays(run: Run, case: str, name: str) -> dict[str, np.ndarray]:
    """Load the arrays of an artefact; empty if it does not exist yet."""
    path = run.directory / case / name
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return dict(file)


# --------------------------------------------------------------- before and after images


def draw_images(run: Run, case: str) -> Figure | None:
    """Draw plain, untrained-noisy and trained-noisy test images, a row each (Figure 3)."""
    rows = _arrays(run, case, "samples.npz")
    if not rows:
        return None
    # Without comparison a run releases noisy images only.
    quality = themis_protection([run])
    own = quality[quality["case"] == case]
    labelled = {_row_label(name, own): images for name, images in rows.items()}
    compared = "Test images before and after noise" if "plain" in rows else "Test images, noisy"
    return draw_image_rows(labelled, _heading(run, case, compared))


def _row_label(name: str, quality: pd.DataFrame) -> str:
    """Return release, M and PSNR on separate lines for an array such as ``"trained M=0.3"``."""
    release, _, bound = name.partition(" M=")
    if not bound:
        return name
    found = quality[(quality["release"] == release) & (quality["M"].map("{:g}".format) == bound)]
    lines = [release, f"M = {bound}"]
    lines += [f"PSNR {value:.1f} dB" for value in found["psnr"].dropna()]
    return "\n".join(lines)


# ------------------------------------------------------------- accuracy while it trains


def draw_accuracy(run: Run, case: str) -> Figure | None:
    """Draw each participant's noisy validation accuracy over generator epochs (Figure 4)."""
    rows = run.frame
    rows = rows[(rows["stage"] == "generator") & (rows["case"] == case)]
    accuracy = _over_epochs(rows, "validation_accuracy")
    if accuracy.empty:
        return None
    looks = assign_styles(run.nodes)
    title = _heading(run, case, "Accuracy on the noisy validation set")
    figure = new_figure(7.5, 6.0, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for name, values in accuracy.items():
        line = 100 * values.dropna()
        upper.plot(line.index, line, **looks[str(name)], markersize=3.5, clip_on=False)
    sigma = _over_epochs(rows, "mean_sigma")
    lower.plot(sigma.index, sigma, color="#444444", marker="o", markersize=3.5, clip_on=False)
    lower.set_ylim(0, None)
    upper.set_xlim(accuracy.index.min(), max(accuracy.index.max(), 1))
    upper.set_ylabel("accuracy (%)")
    lower.set_ylabel("mean σ\n(input units)")
    lower.set_xlabel("epochs of the noise generator's training")
    lower.xaxis.get_major_locator().set_params(integer=True)
    label_lines(figure, upper, to_mapping(100 * accuracy.ffill().iloc[-1]), looks)
    return figure


def _over_epochs(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric with a row per epoch and a column per node, in the frame's order."""
    rows = rows[rows["metric"] == metric]
    wide = rows.pivot_table(index="round", columns="node", values="value")
    return wide[list(rows["node"].unique())]


# ----------------------------------------------------------------- plain against noisy


def draw_plain_against_noisy(run: Run, case: str) -> Figure | None:
    """Draw noisy over plain test accuracy, one panel per M at release (Figure 5)."""
    boards = {M: build_leaderboard(run, case, M) for M in competition_settings(run).release_bounds}
    panels = {
        M: ranked
        for M, ranked in boards.items()
        if ranked is not None and "plain_accuracy" in ranked
    }
    if not panels:
        return None
    title = _heading(run, case, "Accuracy on plain and on noisy test images")
    figure = new_figure(max(5.2 * len(panels), 6.8), 5.3, title)
    looks = assign_styles(run.nodes)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (M, ranked) in zip(row, panels.items(), strict=True):
        _scatter(figure, axes, ranked, looks)
        tau = _kendall(ranked)
        agreeing = "" if math.isnan(tau) else f", Kendall τ = {format_number(tau)}"
        axes.set_title(f"released at M = {M:g}{agreeing}")
    return figure


def _kendall(ranked: pd.DataFrame) -> float:
    accuracies = ranked.set_index("model")
    plain, noisy = (to_mapping(accuracies[f"{kind}_accuracy"]) for kind in ("plain", "trained"))
    return agreement(plain, noisy)["kendall_tau"]


def _scatter(figure: Figure, axes: Axes, ranked: pd.DataFrame, looks: Mapping[str, Any]) -> None:
    for row in ranked.to_dict("records"):
        look = looks[participant_name(row["model"])]
        axes.errorbar(
            row["plain_accuracy"],
            row["trained_accuracy"],
            yerr=row["trained_std"],
            fmt=look["marker"],
            color=look["color"],
            capsize=2.5,
            elinewidth=1,
        )
    _set_limits(axes, ranked)
    axes.axline(
        (0, 0), slope=1, color="#999999", linewidth=1, linestyle=(0, (5, 3)), label="no loss"
    )
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_xlabel("accuracy on plain images (%)")
    axes.set_ylabel("accuracy on noisy images (%)")
    places = zip(ranked["plain_accuracy"], ranked["trained_accuracy"], strict=True)
    colours = {name: looks[participant_name(name)]["color"] for name in ranked["model"]}
    label_points(figure, axes, dict(zip(ranked["model"], places, strict=True)), colours)


def _set_limits(axes: Axes, ranked: pd.DataFrame) -> None:
    """Show all points with their error bars, and the upper end of the diagonal."""
    plain, noisy, std = (
        ranked[name] for name in ("plain_accuracy", "trained_accuracy", "trained_std")
    )
    axes.set_xlim(*_with_margin(plain.min(), plain.max(), 0.14))
    top = max(plain.max(), (noisy + std).max())
    axes.set_ylim(*_with_margin((noisy - std).min(), top, 0.08))


def _with_margin(low: float, high: float, share: float) -> tuple[float, float]:
    margin = max(share * (high - low), 1.0)
    return low - margin, high + margin


# --------------------------------------------------------------------------- the noise


def draw_sigma_mu(run: Run, case: str) -> Figure | None:
    """Draw heat maps of σ as released and of μ, before and after training, per channel."""
    arrays = _arrays(run, case, "generator.npz")
    if not arrays:
        return None
    M = competition_settings(run).release_bounds[0]
    noises = {name: NoiseGenerator(torch.from_numpy(arrays[name]), M) for name in RELEASES}
    sigma = {name: noise.sigma().detach().numpy() for name, noise in noises.items()}
    mu = {name: noise.mu.detach().numpy() for name, noise in noises.items()}
    channels = len(sigma["trained"])
    title = _heading(run, case, f"The noise, released at M = {M:g}")
    side = 2.2 if channels == 1 else 1.4
    figure = new_figure(2 * channels * (side + 0.1) + 0.9, 2 * (side + 0.5) + 0.4, title)
    above, below = figure.subplots(2, 2 * channels, squeeze=False)
    reach = max(float(np.abs(values).max()) for values in mu.values())
    _heat_maps(figure, above, sigma, "σ (input units)", "cividis", (0, M))
    _heat_maps(figure, below, mu, "μ (input units)", "PuOr", (-reach, reach))
    return figure


def _heat_maps(
    figure: Figure,
    row: np.ndarray,
    maps: dict[str, np.ndarray],
    label: str,
    colours: str,
    span: tuple[float, float],
) -> None:
    """Draw one row: each release's channels, on one scale."""
    channels = len(maps["trained"])
    names = CHANNELS.get(channels, tuple(map(str, range(channels))))
    cells = [(release, i) for release in maps for i in range(channels)]
    for axes, (release, i) in zip(row, cells, strict=True):
        values = maps[release][i]
        shown = axes.imshow(values, cmap=colours, vmin=span[0], vmax=span[1])
        axes.set_axis_off()
        axes.set_title(f"{release} {names[i]}\nmean {format_number(values.mean())}", fontsize=8.5)
    figure.colorbar(shown, ax=list(row), label=label, pad=0.02)


# ----------------------------------------------------------------------- over the cases


def draw_ranks(run: Run) -> Figure | None:
    """Draw each participant's rank on plain images and in each case (Table 2)."""
    table = themis_table2([run]).set_index("model").drop(columns=["run", "experiment"])
    table = table.drop(columns=table.filter(regex="_(published|difference)$").columns)
    table = table.dropna(axis="columns", how="all")
    if table.shape[1] < 2:
        return None
    title = f"Ranks on plain images and in each case — {run.name}"
    figure = new_figure(2.6 + 1.2 * table.shape[1], 1.2 + 0.34 * len(table), title)
    axes = figure.subplots()
    # Equal ranks are drawn below each other, both with the better number.
    places = table.astype(float).rank(method="first")
    looks = assign_styles(run.nodes)
    for name in table.index[places.notna().any(axis="columns")]:
        _draw_path(axes, name, list(places.loc[name]), list(table.loc[name]), looks[name])
    columns = [fill(str(name).replace("_", " "), 14) for name in table]
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylim(len(table) + 0.6, 0.4)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


def _draw_path(
    axes: Axes, name: str, places: list[float], ranks: list[int], look: Mapping[str, Any]
) -> None:
    """Draw a participant's path through the cases: ranks in dots, labels at both ends."""
    there = [(x, y) for x, y in enumerate(places) if not math.isnan(y)]
    axes.plot(*zip(*there, strict=True), color=look["color"], linestyle=look["linestyle"])
    axes.plot(*zip(*there, strict=True), "o", color=look["color"], markersize=13)
    for x, y in there:
        number_in_dot = axes.text(x, y, str(ranks[x]), ha="center", va="center_baseline")
        number_in_dot.set(color="white", fontsize=8, fontweight="bold")
    for end, side in ((there[0], -1), (there[-1], 1)):
        label = axes.annotate(name, end, (11 * side, 0), textcoords="offset points", va="center")
        label.set_horizontalalignment(HORIZONTAL[side])


CASE_FIGURES: dict[str, Callable[[Run, str], Figure | None]] = {
    "images": draw_images,
    "accuracy": draw_accuracy,
    "plain-against-noisy": draw_plain_against_noisy,
    "sigma-mu": draw_sigma_mu,
}
