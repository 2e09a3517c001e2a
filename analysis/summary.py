"""Tables of runs: all that there are, and what each system builds its own with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica.analysis.runs import Run, RunPaths, open_runs, open_runs_of
from pudica.clients.runtime.systems import systems

OVERVIEW = ("system", "experiment", "engine", "status", "seed", "started")


def tables(runs: RunPaths) -> dict[str, pd.DataFrame]:
    """Return the non-empty tables of one or several runs by title.

    A single run shows its leaderboards in full. Several runs are shown side by side: a column per
    run and figure.

    Runs are named, and errors raised, as by :func:`pudica.analysis.load`.

    Returns
    -------
    dict of str to DataFrame
        Accuracies in per cent, sizes in bytes, durations in seconds. Columns that would be
        empty are left out, and missing cells are None or NaN.
    """
    opened = open_runs(runs)
    found = {}
    for name, system in sorted(systems().items()):
        if (own := open_runs_of(name, opened)) and system.tables:
            for title, frame in system.part("tables")(own).items():
                # In a single run's tables its name would be the same in every row.
                one = frame.drop(columns=["run", "experiment"], errors="ignore")
                found[title] = frame if len(own) > 1 else one
    disguised = [{"run": run.name, "disguise": run.disguise} for run in opened if run.disguise]
    exchanges = {
        run.name: pd.DataFrame(
            [{"exchange": kind, **total} for kind, total in run.info.get("exchanges", {}).items()]
        )
        for run in opened
    }
    seconds = {
        run.name: pd.DataFrame(run.info.get("seconds", {}).items(), columns=["stage", "seconds"])
        for run in opened
    }
    found |= {
        "Images that were disguised beforehand": pd.DataFrame(disguised),
        "Runs": pd.DataFrame([_overview(run) for run in opened]),
        "Exchanges": join_side_by_side(exchanges, "exchange"),
        "Durations": join_side_by_side(seconds, "stage"),
    }
    return {title: _make_printable(frame) for title, frame in found.items() if not frame.empty}


def _overview(run: Run) -> dict[str, object]:
    exchanges = run.info.get("exchanges", {}).values()
    return {
        "run": run.name,
        **{key: run.info.get(key) for key in OVERVIEW},
        "seconds": sum(run.info.get("seconds", {}).values()),
        "exchanges": sum(total["count"] for total in exchanges),
        "bytes_sent": sum(total["bytes_sent"] for total in exchanges),
        "bytes_received": sum(total["bytes_received"] for total in exchanges),
    }


def _make_printable(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out empty columns, and turn missing whole numbers into None."""
    frame = frame.dropna(axis="columns", how="all")
    for name in frame.select_dtypes("Int64"):
        if frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def join_side_by_side(
    frames: Mapping[str, pd.DataFrame | None], key: str, shown: Sequence[str] = ()
) -> pd.DataFrame:
    """Return frames by run as one; of several runs, with a column per figure and run.

    Parameters
    ----------
    frames : mapping of str to DataFrame or None
        By run; None or empty: nothing of it.
    key : str
        The column whose values name the rows.
    shown : sequence of str
        The figures to show of several runs, by default all.
    """
    there = {run: frame for run, frame in frames.items() if frame is not None and not frame.empty}
    if not there:
        return pd.DataFrame()
    if len(frames) == 1:
        return next(iter(there.values()))
    keyed = {}
    for run, frame in there.items():
        own = frame.set_index(key)
        # Whole numbers stay whole where a run lacks a row that another has.
        keyed[run] = own.astype(dict.fromkeys(own.select_dtypes("int64"), "Int64"))
    rows = list(dict.fromkeys(row for frame in keyed.values() for row in frame.index))
    figures = shown or dict.fromkeys(str(name) for frame in keyed.values() for name in frame)
    wide = {
        f"{figure} ({run})": frame[figure]
        for figure in figures
        for run, frame in keyed.items()
        if figure in frame
    }
    return pd.DataFrame(wide, index=rows).rename_axis(index=key).reset_index()


def build_table(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame:
    """Return rows as a frame of these columns, in which missing numbers are NaN."""
    frame = pd.DataFrame(rows, columns=[*labels, *numbers])
    return frame.astype(dict.fromkeys(numbers, "float64"))


@cache
def load_paper_table(name: str) -> pd.DataFrame:
    """Load a published table from the folder ``paper``; accuracies in per cent."""
    with (files("pudica.analysis") / "paper" / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def by_name(values: pd.Series) -> dict[str, float]:
    """Return a row, or a column, as a dictionary."""
    return {str(name): value for name, value in values.items()}
