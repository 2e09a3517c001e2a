"""Tables and figures of THEMIS runs, the tables beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pudica import models
from pudica.analysis.drawing import (
    assign_styles,
    draw_against_diagonal,
    draw_heat_maps,
    draw_image_rows,
    draw_ranks,
    format_number,
    label_lines,
    new_figure,
)
from pudica.analysis.published import compare_published, label_published, load_paper_table
from pudica.analysis.runs import Run, RunPaths, open_runs_of, select
from pudica.analysis.spread import average_seeds
from pudica.analysis.summary import build_table, by_name
from pudica.models.errors import RequestError
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.leaderboard import agreement, leaderboard, ranks

MEASURED = (
    *("plain_accuracy", "plain_rank", "untrained_accuracy", "untrained_delta_rank"),
    *("trained_accuracy", "trained_delta_rank"),
)
"""The columns of Table 1 that are measured."""
RANKS = {
    "original_rank": "original_rank",
    "case0": "case0_alphabetical",
    "case1": "case1_reverse",
    "case2": "case2_two_dropouts_per_epoch",
}
PROTECTION = (
    *("examiner_accuracy", "psnr", "ssim", "mean_sigma", "psnr_denoised", "ssim_denoised"),
    *("examiner_accuracy_as_released", "examiner_accuracy_plain", "mean_sigma_pixels"),
)
RELEASES = ("untrained", "trained")
SHARED = ""  # the case of measurements shared by all cases
CHEATING = " (cheating)"


def themis_leaderboard(
    runs: RunPaths, case: str | None = None, M: float | None = None, spread: bool = True
) -> pd.DataFrame:
    """Return the leaderboard: a row per run and participant, the best first.

    Arguments and errors as of :func:`themis_table1`.

    Returns
    -------
    DataFrame
        ``run``, then as :func:`pudica.strategies.themis.leaderboard.leaderboard`.
    """
    opened = _open_themis_runs(runs, case, M)
    boards = {run.name: build_leaderboard(run, case, M) for run in opened}
    there = [board.assign(run=name) for name, board in boards.items() if board is not None]
    table = pd.concat(there, ignore_index=True) if there else pd.DataFrame({"run": [], "model": []})
    first = [name for name in ("run", "rank", "model", "trained_accuracy") if name in table]
    table = table[[*first, *table.columns.drop(first)]]
    return sort_leaderboard(average_seeds(table, opened, ["model"], spread))


def themis_table1(
    runs: RunPaths, case: str | None = None, M: float | None = None, spread: bool = True
) -> pd.DataFrame:
    """Return Table 1 of THEMIS: a row per run and participant, in the experiment's order.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. A run without a leaderboard yet gives no rows.
    case : str, optional
        By default each run's first case.
    M : float, optional
        Upper bound of σ at release; by default each run's official (first) one.
    spread : bool
        Whether runs that differ only by their seed are taken together; see
        :func:`pudica.analysis.spread.average_seeds` for the intervals ``…_ci`` and for ``n``.

    Returns
    -------
    DataFrame
        The columns of the published table (accuracies in per cent, means over draws; a positive
        change of rank is a rise), standard deviations over draws, ``…_published`` and
        ``…_difference`` (ours minus published) for each figure, ``run, experiment, case, M``.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or no run has this case or M.
    """
    opened = _open_themis_runs(runs, case, M)
    parts = [_build_table1(run, case, M) for run in opened]
    paper, last = load_paper_table("themis_table1"), ("run", "experiment", "case", "M")
    table = compare_published(parts, paper, MEASURED, ("untrained_std", "trained_std"), last)
    return average_seeds(table, opened, ["model", "case", "M"], spread)


def themis_table2(runs: RunPaths, M: float | None = None, spread: bool = True) -> pd.DataFrame:
    """Return Table 2 of THEMIS: each participant's rank in each case.

    If a participant cheats in a case, its rank there is its cheating model's. Arguments and errors
    as of :func:`themis_table1`.

    Returns
    -------
    DataFrame
        The columns of the published table, from the cases ``case0, case1, case2``; a column per
        further case; ``…_published`` and ``…_difference`` as there; ``run, experiment``.
    """
    opened = _open_themis_runs(runs, None, M)
    parts = [_build_table2(run, M) for run in opened]
    paper = load_paper_table("themis_table2").assign(task="cifar10")
    table = compare_published(parts, paper, tuple(RANKS.values()), (), ("run", "experiment"))
    return average_seeds(table.drop(columns="task"), opened, ["model"], spread)


def themis_protection(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return what the noise protects and costs, which the paper does not report.

    Returns
    -------
    DataFrame
        A row per run, case, M at release, and release (untrained, trained): ``kendall_tau`` and
        ``spearman_rho`` between plain and mean noisy accuracies of the case's participants; the
        examiner's accuracy in per cent after denoising, ``_as_released``, and on ``_plain``
        images; ``psnr`` (dB) and ``ssim``, both again ``_denoised``; ``mean_sigma`` (input
        units), ``mean_sigma_pixels`` (in [0, 1] pixels). The untrained noise is the same in all
        cases; its rank agreement is not where participants differ.
    """
    opened = _open_themis_runs(runs)
    rows = [row for run in opened for row in _protection_rows(run)]
    numbers = ["kendall_tau", *PROTECTION, "spearman_rho"]
    table = build_table(rows, ["run", "case", "M", "release"], numbers)
    return average_seeds(table, opened, ["case", "M", "release"], spread)


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    cases = dict.fromkeys(case for run in runs for case in competition_settings(run).each_case())
    boards = [themis_leaderboard(runs, case).assign(case=case) for case in cases]
    found = {}
    if len(cases) > 1:
        found["Ranks in each case"] = themis_table2(runs)
    board = pd.concat(boards, ignore_index=True)
    first = ["run", *(["case"] if len(cases) > 1 else [])]
    others = board.columns.drop(["run", "case"])
    found["Leaderboard"] = board[[*first, *others]]
    found["Protection"] = themis_protection(runs)
    table1 = themis_table1(runs)
    if table1["trained_accuracy_published"].notna().any():
        found["Beside the paper"] = table1.drop(columns=table1.filter(like="_std"))
    return found


def methods(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each case's row of :func:`pudica.analysis.compare`: participants' mean accuracy."""
    for case, settings in competition_settings(run).each_case().items():
        board = build_leaderboard(run, case)
        if board is not None:
            yield {
                "case": case,
                "method": f"noise, M = {settings.release_bounds[0]:g}, {settings.update}",
                "accuracy": float(board["trained_accuracy"].mean()),
                "edge_mmacs": None,  # participants' models are their own
            }


def competition_settings(run: Run) -> ThemisConfig:
    """Return a run's ``themis`` section; RequestError as of :meth:`Run.section`."""
    return run.section("themis", ThemisConfig)


def participant_name(name: str) -> str:
    """Return the participant of a contestant: MLP has ``"MLP"`` and ``"MLP (cheating)"``."""
    return name.removesuffix(CHEATING)


def sort_leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """Return leaderboards with the best of each run, or group of runs, first."""
    if table.empty:
        return table
    order = dict.fromkeys(table["run"])
    place = table["run"].map({run: number for number, run in enumerate(order)})
    ranked = table.assign(_=place).sort_values(["_", "rank"], kind="stable")
    return ranked.drop(columns="_").reset_index(drop=True)


def build_leaderboard(
    run: Run, case: str | None = None, M: float | None = None
) -> pd.DataFrame | None:
    """Build a case's leaderboard at one M, by default the first and official; None: not there yet.

    Columns as of :func:`pudica.strategies.themis.leaderboard.leaderboard`.
    """
    settings = competition_settings(run)
    case, M = case or next(iter(settings.each_case())), M or settings.release_bounds[0]
    trained = _accuracies_per_draw(run, "trained", case, M)
    if trained.empty:
        return None
    plain = _accuracies_per_draw(run, "plain", SHARED, 0.0)
    untrained = _accuracies_per_draw(run, "untrained", SHARED, M)
    # Contestants absent at a release made no predictions for it.
    plain, untrained = (f.reindex(columns=[*trained], fill_value=0.0) for f in (plain, untrained))
    return leaderboard(
        trained.to_dict("list"),  # type: ignore[arg-type]
        None if plain.empty else by_name(plain.iloc[0]),
        None if untrained.empty else untrained.to_dict("list"),  # type: ignore[arg-type]
    )


def _accuracies_per_draw(run: Run, release: str, case: str, M: float) -> pd.DataFrame:
    """Return accuracies in [0, 1]: a row per complete draw, a column per contestant."""
    rows = select(run.frame, stage="evaluation", metric="accuracy", release=release, case=case, M=M)
    wide = rows.pivot_table(index="draw", columns="node", values="value")
    return wide[list(rows["node"].unique())].dropna()


def _open_themis_runs(runs: RunPaths, case: str | None = None, M: float | None = None) -> list[Run]:
    """Open the matching THEMIS runs that have the requested case and M."""
    found = open_runs_of("themis", runs)
    if not found:
        raise RequestError("none of these runs is a THEMIS competition")
    settings = {run.name: competition_settings(run) for run in found}
    cases: dict[str, Any] = {name: list(own.each_case()) for name, own in settings.items()}
    bounds: dict[str, Any] = {name: own.release_bounds for name, own in settings.items()}
    for what, wanted, offered in (("case", case, cases), ("M at release", M, bounds)):
        having = [run for run in found if wanted is None or wanted in offered[run.name]]
        if not having:
            there = dict.fromkeys(str(item) for run in found for item in offered[run.name])
            raise RequestError(f"no run has the {what} '{wanted}'; there are: {', '.join(there)}")
        found = having
    return found


def _build_table1(run: Run, case: str | None, M: float | None) -> pd.DataFrame | None:
    settings = competition_settings(run)
    case, M = case or next(iter(settings.each_case())), M or settings.release_bounds[0]
    ranked = build_leaderboard(run, case, M)
    if ranked is None:
        return None
    place = ranked["model"].map(lambda name: run.nodes.index(participant_name(name)))
    table = ranked.drop(columns="rank").iloc[place.argsort()].reset_index(drop=True)
    return table.assign(**label_published(run, table["model"]), case=case, M=M)


def _build_table2(run: Run, M: float | None) -> pd.DataFrame | None:
    settings = competition_settings(run)
    M = M or settings.release_bounds[0]
    cases = {
        case: _accuracies_per_draw(run, "trained", case, M).mean() for case in settings.each_case()
    }
    if all(accuracies.empty for accuracies in cases.values()):
        return None
    plain = _accuracies_per_draw(run, "plain", SHARED, 0.0).mean()
    honest = plain[[name for name in run.nodes if name in plain]]
    table = pd.DataFrame({"model": run.nodes})
    for case, accuracies in {"original_rank": honest, **cases}.items():
        ranked = {participant_name(n): rank for n, rank in ranks(by_name(accuracies)).items()}
        table[RANKS.get(case, case)] = table["model"].map(ranked).astype("Int64")
    return table.assign(**label_published(run, table["model"]))


def _protection_rows(run: Run) -> Iterator[dict[str, Any]]:
    settings = competition_settings(run)
    plain = _accuracies_per_draw(run, "plain", SHARED, 0.0).mean()
    for case, M, release in product(settings.each_case(), settings.release_bounds, RELEASES):
        owner = SHARED if release == "untrained" else case
        rows = select(run.frame, stage="protection", release=release, case=owner, M=M)
        found = dict(zip(rows["metric"], rows["value"], strict=True))
        values = {
            name: value * (100 if name.startswith("examiner_accuracy") else 1)
            for name, value in found.items()
            if name in PROTECTION
        }
        contestants = _accuracies_per_draw(run, "trained", case, M).columns
        noisy = _accuracies_per_draw(run, release, owner, M).mean()
        if not (plain.empty or noisy.empty or contestants.empty):
            # Contestants absent at a release made no predictions for it.
            there = (each.reindex(contestants, fill_value=0.0) for each in (plain, noisy))
            values |= agreement(*(by_name(each) for each in there))
        if values:
            yield {"run": run.name, "case": case, "M": M, "release": release, **values}


# ---------------------------------------------------------------------------- figures


def figures(run: Run) -> Iterator[tuple[str, Figure | None]]:
    """Yield name and figure for everything that was measured in a competition."""
    cases = list(competition_settings(run).each_case())
    for case in cases:
        yield f"{case}-images", draw_images(run, case)
        yield f"{case}-accuracy", _draw_accuracy(run, case)
        yield f"{case}-plain-against-noisy", _draw_plain_against_noisy(run, case)
        yield f"{case}-sigma-mu", _draw_sigma_mu(run, case)
    if len(cases) > 1:
        yield "ranks", _draw_ranks(run)


def _heading(run: Run, case: str, title: str) -> str:
    only = len(competition_settings(run).each_case()) == 1
    return f"{title} — {run.name}" if only else f"{title} — {run.name}, {case}"


def _load_arrays(run: Run, case: str, name: str) -> dict[str, np.ndarray]:
    """Load the arrays of an artefact; empty if it does not exist yet."""
    path = run.directory / case / name
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return dict(file)


def draw_images(run: Run, case: str) -> Figure | None:
    """Draw plain, untrained-noisy and trained-noisy test images, a row each (Figure 3)."""
    arrays = _load_arrays(run, case, "samples.npz")
    if not arrays:
        return None
    quality = select(themis_protection([run]), case=case)
    rows = {}
    for name, images in arrays.items():  # "plain", or such as "trained M=0.3"
        release, _, bound = name.partition(" M=")
        own = select(quality, release=release)
        own = own[own["M"].map("{:g}".format) == bound]
        lines = [release, f"M = {bound}" if bound else ""]
        lines += [f"PSNR {value:.1f} dB" for value in own["psnr"].dropna()]
        rows["\n".join(filter(None, lines))] = images
    # Without comparison a run releases noisy images only.
    title = "Test images before and after noise" if "plain" in arrays else "Test images, noisy"
    return draw_image_rows(rows, _heading(run, case, title))


def _draw_accuracy(run: Run, case: str) -> Figure | None:
    """Draw each participant's noisy validation accuracy over generator epochs (Figure 4)."""
    rows = select(run.frame, stage="generator", case=case)
    accuracy, sigma = (_over_epochs(rows, name) for name in ("validation_accuracy", "mean_sigma"))
    if accuracy.empty:
        return None
    looks = assign_styles(run.nodes)
    figure = new_figure(7.5, 6.0, _heading(run, case, "Accuracy on the noisy validation set"))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for name, values in accuracy.items():
        line = 100 * values.dropna()
        upper.plot(line.index, line, **looks[str(name)], markersize=3.5, clip_on=False)
    lower.plot(sigma.index, sigma, color="#444444", marker="o", markersize=3.5, clip_on=False)
    lower.set_ylim(0, None)
    upper.set_xlim(accuracy.index.min(), max(accuracy.index.max(), 1))
    upper.set_ylabel("accuracy (%)")
    lower.set_ylabel("mean σ\n(input units)")
    lower.set_xlabel("epochs of the noise generator's training")
    lower.xaxis.get_major_locator().set_params(integer=True)
    label_lines(figure, upper, by_name(100 * accuracy.ffill().iloc[-1]), looks)
    return figure


def _over_epochs(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric with a row per epoch and a column per node, in the frame's order."""
    rows = select(rows, metric=metric)
    wide = rows.pivot_table(index="round", columns="node", values="value")
    return wide[list(rows["node"].unique())]


def _draw_plain_against_noisy(run: Run, case: str) -> Figure | None:
    """Draw noisy over plain test accuracy, one panel per M at release (Figure 5)."""
    boards = {M: build_leaderboard(run, case, M) for M in competition_settings(run).release_bounds}
    panels = {
        M: board.set_index("model")
        for M, board in boards.items()
        if board is not None and "plain_accuracy" in board
    }
    if not panels:
        return None
    title = _heading(run, case, "Accuracy on plain and on noisy test images")
    figure = new_figure(max(5.2 * len(panels), 6.8), 5.3, title)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    looks = assign_styles(run.nodes)
    for axes, (M, board) in zip(row, panels.items(), strict=True):
        styles = {name: looks[participant_name(name)] for name in board.index}
        plain, noisy = board["plain_accuracy"], board["trained_accuracy"]
        axes.set_xlabel("accuracy on plain images (%)")
        axes.set_ylabel("accuracy on noisy images (%)")
        draw_against_diagonal(figure, axes, plain, noisy, board["trained_std"], styles)
        tau = agreement(by_name(plain), by_name(noisy))["kendall_tau"]
        agreeing = "" if math.isnan(tau) else f", Kendall τ = {format_number(tau)}"
        axes.set_title(f"released at M = {M:g}{agreeing}")
    return figure


def _draw_sigma_mu(run: Run, case: str) -> Figure | None:
    """Draw heat maps of σ as released and of μ, before and after training, per channel."""
    arrays = _load_arrays(run, case, "generator.npz")
    if not arrays:
        return None
    M = competition_settings(run).release_bounds[0]
    noises = {n: models.NoiseGenerator(torch.from_numpy(arrays[n]), M) for n in RELEASES}
    sigma = {name: noise.sigma().detach().numpy() for name, noise in noises.items()}
    mu = {name: noise.mu.detach().numpy() for name, noise in noises.items()}
    channels = len(sigma["trained"])
    side = 2.2 if channels == 1 else 1.4
    size = (2 * channels * (side + 0.1) + 0.9, 2 * (side + 0.5) + 0.4)
    figure = new_figure(*size, _heading(run, case, f"The noise, released at M = {M:g}"))
    above, below = figure.subplots(2, 2 * channels, squeeze=False)
    reach = max(float(np.abs(values).max()) for values in mu.values())
    draw_heat_maps(figure, above, sigma, "σ (input units)", "cividis", (0, M))
    draw_heat_maps(figure, below, mu, "μ (input units)", "PuOr", (-reach, reach))
    return figure


def _draw_ranks(run: Run) -> Figure | None:
    """Draw each participant's rank on plain images and in each case (Table 2)."""
    table = themis_table2([run]).set_index("model").drop(columns=["run", "experiment"])
    table = table.drop(columns=table.filter(regex="_(published|difference)$").columns)
    table = table.dropna(axis="columns", how="all")
    if table.shape[1] < 2:
        return None
    title = f"Ranks on plain images and in each case — {run.name}"
    return draw_ranks(table, assign_styles(run.nodes), title)
