"""Tables of runs: all that there are, and what each system builds its own with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pudica.analysis.rendering import Tables
from pudica.analysis.runs import ATTACKS, Run, RunPaths, open_runs, open_runs_of
from pudica.analysis.spread import average_seeds, group_by_seed
from pudica.clients.runtime.systems import systems

LOGISTICS = ("Exchanges", "Durations")
OVERVIEW = ("status", "system", "experiment", "engine", "seed", "started")


def tables(runs: RunPaths) -> Tables:
    """Return the non-empty tables of one or several runs by title.

    Runs that differ only by their seed are taken together, as by
    :func:`pudica.analysis.spread.average_seeds`; others are below each other, with a column
    ``run``. What was sent, and how long it took, is there if all runs are of one group. Runs are
    named, and errors raised, as by :func:`pudica.analysis.load`.

    Returns
    -------
    dict of str to DataFrame
        A notebook shows them as tables, a terminal as text. Accuracies in per cent, sizes in
        bytes, durations in seconds. The columns that matter most come first. Columns that would be
        empty are left out, and missing cells are None or NaN.
    """
    opened = open_runs(runs)
    groups = set(group_by_seed(opened).values())
    found = {}
    for name, system in sorted(systems().items()):
        if (own := open_runs_of(name, opened)) and system.tables:
            for title, frame in system.part("tables")(own).items():
                # In the tables of a single run, or group, its name would be the same in every row.
                one = frame.drop(columns=["run", "experiment"], errors="ignore")
                found[title] = frame if len(groups) > 1 else one
    for title, frame in _build_attacks(opened).items():
        found[title] = frame if len(groups) > 1 else frame.drop(columns="run")
    disguised = [{"run": run.name, "disguise": run.disguise} for run in opened if run.disguise]
    found |= {
        "Images that were disguised beforehand": pd.DataFrame(disguised),
        "Runs": pd.DataFrame([_overview(run) for run in opened]),
    }
    if len(groups) == 1:
        built = (_build_exchanges(opened), _build_durations(opened))
        found |= dict(zip(LOGISTICS, built, strict=True))
    return Tables(
        (title, _make_printable(frame)) for title, frame in found.items() if not frame.empty
    )


def brief(found: Mapping[str, pd.DataFrame]) -> Tables:
    """Return those of :func:`tables` that say what came out, without what was exchanged."""
    return Tables((title, frame) for title, frame in found.items() if title not in LOGISTICS)


def _build_attacks(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    if not any(any(run.directory.glob(ATTACKS)) for run in runs):
        return {}
    # All attacks, and what they are built on, are slow to import.
    from pudica.analysis.frontiers import attack_tables

    return attack_tables(runs)


def _build_exchanges(runs: Sequence[Run]) -> pd.DataFrame:
    rows = [
        {"run": run.name, "exchange": kind, **total}
        for run in runs
        for kind, total in run.info.get("exchanges", {}).items()
    ]
    return _average_group(rows, "exchange", runs)


def _build_durations(runs: Sequence[Run]) -> pd.DataFrame:
    rows = [
        {"run": run.name, "stage": stage, "seconds": seconds}
        for run in runs
        for stage, seconds in run.info.get("seconds", {}).items()
    ]
    return _average_group(rows, "stage", runs)


def _average_group(rows: list[dict[str, Any]], key: str, runs: Sequence[Run]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=None if rows else ["run", key])
    return average_seeds(frame, runs, [key]).drop(columns="run")


def _overview(run: Run) -> dict[str, object]:
    exchanges = run.info.get("exchanges", {}).values()
    return {
        "run": run.name,
        **{key: run.info.get(key) for key in OVERVIEW[:1]},
        "seconds": sum(run.info.get("seconds", {}).values()),
        "bytes_sent": sum(total["bytes_sent"] for total in exchanges),
        "bytes_received": sum(total["bytes_received"] for total in exchanges),
        "exchanges": sum(total["count"] for total in exchanges),
        **{key: run.info.get(key) for key in OVERVIEW[1:]},
    }


def _make_printable(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out empty columns, and turn missing whole numbers into None."""
    frame = frame.dropna(axis="columns", how="all")
    for name in frame.select_dtypes("Int64"):
        if frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def build_table(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame:
    """Return rows as a frame of these columns, in which missing numbers are NaN."""
    frame = pd.DataFrame(rows, columns=[*labels, *numbers])
    return frame.astype(dict.fromkeys(numbers, "float64"))


def by_name(values: pd.Series) -> dict[str, float]:
    """Return a row, or a column, as a dictionary."""
    return {str(name): value for name, value in values.items()}
