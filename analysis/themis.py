"""The tables of THEMIS from runs, beside the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica import models
from pudica.analysis.runs import Run, RunPaths, runs_of
from pudica.clients.data.registry import lookup
from pudica.models.errors import RequestError
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.leaderboard import agreement, leaderboard, ranks

FIGURES = (
    "plain_accuracy",
    "plain_rank",
    "untrained_accuracy",
    "untrained_delta_rank",
    "trained_accuracy",
    "trained_delta_rank",
)
SPREADS = ("untrained_std", "trained_std")
RANKS = {
    "original_rank": "original_rank",
    "case0": "case0_alphabetical",
    "case1": "case1_reverse",
    "case2": "case2_two_dropouts_per_epoch",
}
PROTECTION = (
    "mean_sigma",
    "mean_sigma_pixels",
    "psnr",
    "ssim",
    "psnr_denoised",
    "ssim_denoised",
    "examiner_accuracy",
    "examiner_accuracy_as_released",
    "examiner_accuracy_plain",
)
AGREEMENT = ("kendall_tau", "spearman_rho")
# The case under which rows stand that no case changes.
SHARED = ""
CHEATING = " (cheating)"
# What the paper's rows are matched by, besides the task; participants may have any name.
ARCHITECTURE = "architecture"


# ------------------------------------------------------------------------- the tables


def themis_table1(runs: RunPaths, case: str | None = None, M: float | None = None) -> pd.DataFrame:
    """Return Table 1 of THEMIS: a row per run and participant, in the experiment's order.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. A run that has not got as far gives no rows.
    case : str, optional
        By default each run's first case.
    M : float, optional
        Upper bound of σ at release; by default each run's official (first) one.

    Returns
    -------
    DataFrame
        The columns of the published table (accuracies in per cent, means over draws; a
        positive change of rank is a rise), then the standard deviations over draws, then
        ``…_published`` and ``…_difference`` (ours minus published) for each figure, then
        ``run, experiment, case, M``. What was not measured, or not published, is missing.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or no run has this case or M.
    """
    parts = [_table1_of(run, case, M) for run in _opened(runs, case, M)]
    last = ["run", "experiment", "case", "M"]
    table = _stacked(parts, ["task", "model", *FIGURES, *SPREADS, ARCHITECTURE, *last])
    return _with_last(_beside(table, _paper("themis_table1"), FIGURES), last)


def themis_table1_spread(
    runs: RunPaths, case: str | None = None, M: float | None = None
) -> pd.DataFrame:
    """Return Table 1 over several runs, such as seeds: mean, smallest and largest figures.

    Arguments and errors as of :func:`themis_table1`. Runs of the same experiment are put
    together.

    Returns
    -------
    DataFrame
        The columns of the published table (means over runs), ``runs`` (how many), each figure
        with ``_min`` and ``_max``, with ``_published`` and ``_difference``, then
        ``experiment, case, M``.
    """
    table = themis_table1(runs, case, M)
    keys = ["experiment", "task", "model", "case", "M"]
    groups = table.groupby(keys, sort=False, dropna=False)
    spread = groups[list(FIGURES)].mean().astype(float)
    spread["runs"] = groups.size()
    for figure in FIGURES:
        spread[f"{figure}_min"] = groups[figure].min()
        spread[f"{figure}_max"] = groups[figure].max()
    for figure in FIGURES:
        spread[f"{figure}_published"] = groups[f"{figure}_published"].first()
        spread[f"{figure}_difference"] = groups[f"{figure}_difference"].mean().astype(float)
    return _with_last(spread.reset_index(), ["experiment", "case", "M"])


def themis_table2(runs: RunPaths, M: float | None = None) -> pd.DataFrame:
    """Return Table 2 of THEMIS: each participant's rank in each case.

    Where a case lets a participant cheat, its rank in that case is its cheating model's.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. The published columns come from the cases ``case0``,
        ``case1`` and ``case2``; a case of another name gives a column of its name.
    M : float, optional
        Upper bound of σ at release; by default each run's official (first) one.

    Returns
    -------
    DataFrame
        The columns of the published table, further cases, ``…_published`` and
        ``…_difference`` (ours minus published) for the published columns, then
        ``run, experiment``.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or no run has this M.
    """
    parts = [_table2_of(run, M) for run in _opened(runs, None, M)]
    last = ["run", "experiment"]
    table = _stacked(parts, ["task", "model", *RANKS.values(), ARCHITECTURE, *last])
    paper = _paper("themis_table2").assign(task="cifar10")
    beside = _beside(table, paper, tuple(RANKS.values()))
    return _with_last(beside.drop(columns="task"), last)


def themis_protection(runs: RunPaths) -> pd.DataFrame:
    """Return what the noise protects and what it costs, which the paper leaves out.

    Returns
    -------
    DataFrame
        A row per run, case, M at release, and release (untrained, trained):
        ``mean_sigma`` (input units), ``mean_sigma_pixels`` (in [0, 1] pixels), ``psnr`` (dB),
        ``ssim``, both again ``_denoised``; the examiner's accuracy in per cent after denoising,
        ``_as_released``, and on ``_plain`` images; ``kendall_tau`` and ``spearman_rho`` between
        plain and mean noisy accuracies of the case's participants. The untrained noise is the
        same in all cases; its rank agreement is not where participants differ.
    """
    columns = ["run", "case", "M", "release", *PROTECTION, *AGREEMENT]
    rows = [row for run in _opened(runs) for row in _protection_of(run)]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------------- parts of a run


def competition(run: Run) -> ThemisConfig:
    """Return a run's ``themis`` section.

    Raises
    ------
    RequestError
        It was written by a version of Pudica that had other settings.
    """
    return run.section("themis", ThemisConfig)


def draws(run: Run, release: str, case: str, M: float) -> pd.DataFrame:
    """Return accuracies in [0, 1]: a row per draw that is complete, a column per contestant."""
    rows = run.frame
    rows = rows[
        (rows["stage"] == "evaluation")
        & (rows["metric"] == "accuracy")
        & (rows["release"] == release)
        & (rows["case"] == case)
        & (rows["M"] == M)
    ]
    wide = rows.pivot_table(index="draw", columns="node", values="value")
    return wide[list(rows["node"].unique())].dropna()


def board(run: Run, case: str, M: float) -> pd.DataFrame | None:
    """Return a case's leaderboard at one M, or None before there is one.

    Columns as of :func:`pudica.strategies.themis.leaderboard.leaderboard`.
    """
    trained = draws(run, "trained", case, M)
    if trained.empty:
        return None
    names = list(trained)
    plain = draws(run, "plain", SHARED, 0.0)
    untrained = draws(run, "untrained", SHARED, M)
    return leaderboard(
        _per_draw(trained),
        None if plain.empty else by_name(plain.reindex(columns=names, fill_value=0.0).iloc[0]),
        None if untrained.empty else _per_draw(untrained.reindex(columns=names, fill_value=0.0)),
    )


def by_name(values: pd.Series) -> dict[str, float]:
    """Return a series as a mapping of its labels."""
    return {str(name): float(value) for name, value in values.items()}


def _per_draw(accuracies: pd.DataFrame) -> dict[str, list[float]]:
    return {str(name): accuracies[name].tolist() for name in accuracies}


def participant(name: str) -> str:
    """Return whose model a contestant is: ``"MLP (cheating)"`` is one of MLP's two."""
    return name.removesuffix(CHEATING)


def _opened(runs: RunPaths, case: str | None = None, M: float | None = None) -> list[Run]:
    """Return the THEMIS runs among those meant that have the case and the M asked for."""
    found = runs_of("themis", runs)
    if not found:
        raise RequestError("none of these runs is a THEMIS competition")
    found = _having(found, "case", case, lambda run: list(competition(run).each_case()))
    return _having(found, "M at release", M, lambda run: competition(run).release_bounds)


def _having(
    runs: list[Run], what: str, wanted: Any, offered: Callable[[Run], Sequence[Any]]
) -> list[Run]:
    having = [run for run in runs if wanted is None or wanted in offered(run)]
    if not having:
        there = dict.fromkeys(str(item) for run in runs for item in offered(run))
        raise RequestError(f"no run has the {what} '{wanted}'; there are: {', '.join(there)}")
    return having


def _table1_of(run: Run, case: str | None, M: float | None) -> pd.DataFrame | None:
    settings = competition(run)
    case = case or next(iter(settings.each_case()))
    M = M or settings.release_bounds[0]
    ranked = board(run, case, M)
    if ranked is None:
        return None
    place = [run.nodes.index(participant(name)) for name in ranked["model"]]
    table = ranked.assign(place=place).sort_values("place", ignore_index=True)
    table = table.drop(columns=["place", "rank"])
    return table.assign(**_labels(run, table["model"]), case=case, M=M)


def _table2_of(run: Run, M: float | None) -> pd.DataFrame | None:
    settings = competition(run)
    M = M or settings.release_bounds[0]
    cases = {case: draws(run, "trained", case, M).mean() for case in settings.each_case()}
    if all(accuracies.empty for accuracies in cases.values()):
        return None
    plain = draws(run, "plain", SHARED, 0.0).mean()
    honest = plain[[name for name in run.nodes if name in plain]]
    table = pd.DataFrame({"model": run.nodes})
    for case, accuracies in {"original_rank": honest, **cases}.items():
        ranked = {participant(name): rank for name, rank in ranks(by_name(accuracies)).items()}
        table[RANKS.get(case, case)] = table["model"].map(ranked).astype("Int64")
    return table.assign(**_labels(run, table["model"]))


def _protection_of(run: Run) -> Iterator[dict[str, Any]]:
    settings = competition(run)
    for case in settings.each_case():
        for M in settings.release_bounds:
            for release in ("untrained", "trained"):
                owner = SHARED if release == "untrained" else case
                values = {
                    **_measured(run, release, owner, M),
                    **_agreement(run, release, owner, case, M),
                }
                if values:
                    yield {"run": run.name, "case": case, "M": M, "release": release, **values}


def _measured(run: Run, release: str, case: str, M: float) -> dict[str, float]:
    rows = run.frame
    rows = rows[
        (rows["stage"] == "protection")
        & (rows["release"] == release)
        & (rows["case"] == case)
        & (rows["M"] == M)
    ]
    values = dict(zip(rows["metric"], rows["value"], strict=True))
    return {
        name: value * (100 if name.startswith("examiner_accuracy") else 1)
        for name, value in values.items()
        if name in PROTECTION
    }


def _agreement(run: Run, release: str, owner: str, case: str, M: float) -> dict[str, float]:
    contestants = draws(run, "trained", case, M).columns
    plain = draws(run, "plain", SHARED, 0.0).mean()
    noisy = draws(run, release, owner, M).mean()
    if plain.empty or noisy.empty or contestants.empty:
        return {}
    # Whoever was away when something was released has predicted nothing of it.
    there = (values.reindex(contestants, fill_value=0.0) for values in (plain, noisy))
    return agreement(*map(by_name, there))


def _task(run: Run) -> str:
    """Return the paper's name of the task; elsewhere the data set's."""
    data = run.settings["data"]
    if data["name"] == "utkface":
        return f"utkface_{data.get('label') or lookup('utkface').label}"
    return str(data["name"])


def _labels(run: Run, names: Iterable[str]) -> dict[str, Any]:
    """Return the columns that say which run, task and architectures a table's rows are of."""
    models_of = {p["name"]: p["model"] for p in run.settings["participants"]}
    return {
        "task": _task(run),
        ARCHITECTURE: [_published_name(models_of.get(name, "")) for name in names],
        "run": run.name,
        "experiment": run.info.get("experiment", ""),
    }


def _published_name(model: str) -> str:
    """Return an architecture's published name; a cheating model has none."""
    try:
        return models.display_name(model) if model else ""
    except RequestError:
        return model


# ------------------------------------------------------------------ beside the paper's


@cache
def _paper(table: str) -> pd.DataFrame:
    """Return a published table; accuracies in per cent."""
    with (files("pudica.analysis") / "paper" / f"{table}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _stacked(parts: Iterable[pd.DataFrame | None], columns: Sequence[str]) -> pd.DataFrame:
    """Return the parts below each other: these columns, then the others."""
    there = [part for part in parts if part is not None]
    table = pd.concat(there, ignore_index=True) if there else pd.DataFrame()
    further = [name for name in table.columns if name not in columns]
    return table.reindex(columns=[*columns, *further])


def _beside(table: pd.DataFrame, paper: pd.DataFrame, figures: Sequence[str]) -> pd.DataFrame:
    """Add what the paper has for the same task and architecture, and ours minus that."""
    keys = table[["task", ARCHITECTURE]].rename(columns={ARCHITECTURE: "model"})
    # Ranks are whole numbers, and may be missing.
    whole = {figure: "Int64" for figure in figures if "accuracy" not in figure}
    published = keys.merge(paper, on=["task", "model"], how="left").astype(whole)
    table = table.astype(whole)
    for figure in figures:
        table[f"{figure}_published"] = published[figure]
        table[f"{figure}_difference"] = table[figure] - published[figure]
    return table.drop(columns=ARCHITECTURE)


def _with_last(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[[*table.columns.drop(list(names)), *names]]
