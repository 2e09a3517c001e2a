"""Tables of THEMIS runs, beside the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica import models
from pudica.analysis.layout import drop_run_names, join_side_by_side
from pudica.analysis.runs import Run, RunPaths, open_runs_of
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
# The case of measurements shared by all cases.
SHARED = ""
CHEATING = " (cheating)"
# Matched to the paper's rows, besides the task; participants may have any name.
ARCHITECTURE = "architecture"


# ------------------------------------------------------------------------- the tables


def themis_table1(runs: RunPaths, case: str | None = None, M: float | None = None) -> pd.DataFrame:
    """Return Table 1 of THEMIS: a row per run and participant, in the experiment's order.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. A run without a leaderboard yet gives no rows.
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
        ``run, experiment, case, M``. Values that were not measured or published are missing.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or no run has this case or M.
    """
    parts = [_build_table1(run, case, M) for run in _open_themis_runs(runs, case, M)]
    last = ["run", "experiment", "case", "M"]
    table = _stack(parts, ["task", "model", *FIGURES, *SPREADS, ARCHITECTURE, *last])
    return _move_to_end(_add_published(table, _load_paper_table("themis_table1"), FIGURES), last)


def themis_table1_spread(
    runs: RunPaths, case: str | None = None, M: float | None = None
) -> pd.DataFrame:
    """Return Table 1 over several runs, such as seeds: mean, minimum and maximum figures.

    Arguments and errors as of :func:`themis_table1`. Runs of the same experiment are grouped.

    Returns
    -------
    DataFrame
        The columns of the published table (means over runs), ``runs`` (their number), each figure
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
    return _move_to_end(spread.reset_index(), ["experiment", "case", "M"])


def themis_table2(runs: RunPaths, M: float | None = None) -> pd.DataFrame:
    """Return Table 2 of THEMIS: each participant's rank in each case.

    If a participant cheats in a case, its rank there is its cheating model's.

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
    parts = [_build_table2(run, M) for run in _open_themis_runs(runs, None, M)]
    last = ["run", "experiment"]
    table = _stack(parts, ["task", "model", *RANKS.values(), ARCHITECTURE, *last])
    paper = _load_paper_table("themis_table2").assign(task="cifar10")
    beside = _add_published(table, paper, tuple(RANKS.values()))
    return _move_to_end(beside.drop(columns="task"), last)


def themis_protection(runs: RunPaths) -> pd.DataFrame:
    """Return what the noise protects and costs, which the paper does not report.

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
    rows = [row for run in _open_themis_runs(runs) for row in _protection_rows(run)]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------------- parts of a run


def competition_settings(run: Run) -> ThemisConfig:
    """Return a run's ``themis`` section.

    Raises
    ------
    RequestError
        If another version of Pudica, with other settings, wrote the run.
    """
    return run.section("themis", ThemisConfig)


def accuracies_per_draw(run: Run, release: str, case: str, M: float) -> pd.DataFrame:
    """Return accuracies in [0, 1]: a row per complete draw, a column per contestant."""
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


def build_leaderboard(run: Run, case: str, M: float) -> pd.DataFrame | None:
    """Build a case's leaderboard at one M; None if there are no measurements yet.

    Columns as of :func:`pudica.strategies.themis.leaderboard.leaderboard`.
    """
    trained = accuracies_per_draw(run, "trained", case, M)
    if trained.empty:
        return None
    names = list(trained)
    plain = accuracies_per_draw(run, "plain", SHARED, 0.0)
    untrained = accuracies_per_draw(run, "untrained", SHARED, M)
    return leaderboard(
        _lists_by_name(trained),
        None if plain.empty else to_mapping(plain.reindex(columns=names, fill_value=0.0).iloc[0]),
        None
        if untrained.empty
        else _lists_by_name(untrained.reindex(columns=names, fill_value=0.0)),
    )


def to_mapping(values: pd.Series) -> dict[str, float]:
    """Return a series as a dictionary."""
    return {str(name): float(value) for name, value in values.items()}


def _lists_by_name(accuracies: pd.DataFrame) -> dict[str, list[float]]:
    return {str(name): accuracies[name].tolist() for name in accuracies}


def participant_name(name: str) -> str:
    """Return the participant of a contestant: MLP has ``"MLP"`` and ``"MLP (cheating)"``."""
    return name.removesuffix(CHEATING)


def _open_themis_runs(runs: RunPaths, case: str | None = None, M: float | None = None) -> list[Run]:
    """Open the matching THEMIS runs that have the requested case and M."""
    found = open_runs_of("themis", runs)
    if not found:
        raise RequestError("none of these runs is a THEMIS competition")
    found = _select_runs(
        found, "case", case, lambda run: list(competition_settings(run).each_case())
    )
    return _select_runs(
        found, "M at release", M, lambda run: competition_settings(run).release_bounds
    )


def _select_runs(
    runs: list[Run], what: str, wanted: Any, offered: Callable[[Run], Sequence[Any]]
) -> list[Run]:
    having = [run for run in runs if wanted is None or wanted in offered(run)]
    if not having:
        there = dict.fromkeys(str(item) for run in runs for item in offered(run))
        raise RequestError(f"no run has the {what} '{wanted}'; there are: {', '.join(there)}")
    return having


def _build_table1(run: Run, case: str | None, M: float | None) -> pd.DataFrame | None:
    settings = competition_settings(run)
    case = case or next(iter(settings.each_case()))
    M = M or settings.release_bounds[0]
    ranked = build_leaderboard(run, case, M)
    if ranked is None:
        return None
    place = [run.nodes.index(participant_name(name)) for name in ranked["model"]]
    table = ranked.assign(place=place).sort_values("place", ignore_index=True)
    table = table.drop(columns=["place", "rank"])
    return table.assign(**_labels(run, table["model"]), case=case, M=M)


def _build_table2(run: Run, M: float | None) -> pd.DataFrame | None:
    settings = competition_settings(run)
    M = M or settings.release_bounds[0]
    cases = {
        case: accuracies_per_draw(run, "trained", case, M).mean() for case in settings.each_case()
    }
    if all(accuracies.empty for accuracies in cases.values()):
        return None
    plain = accuracies_per_draw(run, "plain", SHARED, 0.0).mean()
    honest = plain[[name for name in run.nodes if name in plain]]
    table = pd.DataFrame({"model": run.nodes})
    for case, accuracies in {"original_rank": honest, **cases}.items():
        ranked = {
            participant_name(name): rank for name, rank in ranks(to_mapping(accuracies)).items()
        }
        table[RANKS.get(case, case)] = table["model"].map(ranked).astype("Int64")
    return table.assign(**_labels(run, table["model"]))


def _protection_rows(run: Run) -> Iterator[dict[str, Any]]:
    settings = competition_settings(run)
    for case in settings.each_case():
        for M in settings.release_bounds:
            for release in ("untrained", "trained"):
                owner = SHARED if release == "untrained" else case
                values = {
                    **_protection_values(run, release, owner, M),
                    **_agreement(run, release, owner, case, M),
                }
                if values:
                    yield {"run": run.name, "case": case, "M": M, "release": release, **values}


def _protection_values(run: Run, release: str, case: str, M: float) -> dict[str, float]:
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
    contestants = accuracies_per_draw(run, "trained", case, M).columns
    plain = accuracies_per_draw(run, "plain", SHARED, 0.0).mean()
    noisy = accuracies_per_draw(run, release, owner, M).mean()
    if plain.empty or noisy.empty or contestants.empty:
        return {}
    # Contestants absent at a release made no predictions for it.
    there = (values.reindex(contestants, fill_value=0.0) for values in (plain, noisy))
    return agreement(*map(to_mapping, there))


def _task(run: Run) -> str:
    """Return the paper's name of the task, or else the data set's name."""
    data = run.settings["data"]
    if data["name"] == "utkface":
        return f"utkface_{data.get('label') or lookup('utkface').label}"
    return str(data["name"])


def _labels(run: Run, names: Iterable[str]) -> dict[str, Any]:
    """Return the columns that identify run, task and architectures of a table's rows."""
    models_of = {p["name"]: p["model"] for p in run.settings["participants"]}
    return {
        "task": _task(run),
        ARCHITECTURE: [_published_name(models_of.get(name, "")) for name in names],
        "run": run.name,
        "experiment": run.info.get("experiment", ""),
    }


def _published_name(model: str) -> str:
    """Return the published name of an architecture; a cheating model has none."""
    try:
        return models.display_name(model) if model else ""
    except RequestError:
        return model


# ------------------------------------------------------------------ beside the paper's


@cache
def _load_paper_table(table: str) -> pd.DataFrame:
    """Load a published table; accuracies in per cent."""
    with (files("pudica.analysis") / "paper" / f"{table}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _stack(parts: Iterable[pd.DataFrame | None], columns: Sequence[str]) -> pd.DataFrame:
    """Concatenate the parts: these columns first, then the others."""
    there = [part for part in parts if part is not None]
    table = pd.concat(there, ignore_index=True) if there else pd.DataFrame()
    further = [name for name in table.columns if name not in columns]
    return table.reindex(columns=[*columns, *further])


def _add_published(
    table: pd.DataFrame, paper: pd.DataFrame, figures: Sequence[str]
) -> pd.DataFrame:
    """Add the published values for the same task and architecture, and the differences."""
    keys = table[["task", ARCHITECTURE]].rename(columns={ARCHITECTURE: "model"})
    # Ranks are nullable integers.
    whole = {figure: "Int64" for figure in figures if "accuracy" not in figure}
    published = keys.merge(paper, on=["task", "model"], how="left").astype(whole)
    table = table.astype(whole)
    for figure in figures:
        table[f"{figure}_published"] = published[figure]
        table[f"{figure}_difference"] = table[figure] - published[figure]
    return table.drop(columns=ARCHITECTURE)


def _move_to_end(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[[*table.columns.drop(list(names)), *names]]


SIDE_BY_SIDE = ("rank", "plain_accuracy", "trained_accuracy")


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    cases = list(
        dict.fromkeys(case for run in runs for case in competition_settings(run).each_case())
    )
    found = {}
    for case in cases:
        title = "Leaderboard" if len(cases) == 1 else f"Leaderboard, {case}"
        found[title] = _join_leaderboards(runs, case)
    if len(cases) > 1:
        found["Ranks in each case"] = themis_table2(runs)
    found["Protection"] = themis_protection(runs)
    table1 = themis_table1(runs)
    if table1["trained_accuracy_published"].notna().any():
        found["Beside the paper"] = table1.drop(columns=table1.filter(like="_std"))
    return drop_run_names(found, runs)


def _join_leaderboards(runs: Sequence[Run], case: str) -> pd.DataFrame:
    boards = {}
    for run in runs:
        settings = competition_settings(run)
        if case in settings.each_case():
            boards[run.name] = build_leaderboard(run, case, settings.release_bounds[0])
    there = {name: frame for name, frame in boards.items() if frame is not None}
    if len(runs) > 1:
        there = {n: f.filter(["model", *SIDE_BY_SIDE]) for n, f in there.items()}
    return join_side_by_side(there, "model", len(runs) > 1)
