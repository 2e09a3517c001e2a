"""Overview tables of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from pudica.analysis.layout import join_side_by_side, make_printable
from pudica.analysis.runs import Run, RunPaths, open_runs, open_runs_of
from pudica.clients.runtime.systems import systems

OVERVIEW = ("system", "experiment", "engine", "status", "seed", "started")


def tables(runs: RunPaths) -> dict[str, pd.DataFrame]:
    """Return the non-empty tables of one or several runs by title.

    A single run shows its leaderboards in full. Several runs are shown side by side: a column per
    run and figure.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.

    Returns
    -------
    dict of str to DataFrame
        Accuracies in per cent, sizes in bytes, durations in seconds. Columns that would be
        empty are left out, and missing cells are None or NaN.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`.
    """
    opened = open_runs(runs)
    shown = [
        system.part("tables")(own)
        for name, system in sorted(systems().items())
        if (own := open_runs_of(name, opened)) and system.tables
    ]
    found = {
        **{title: frame for each in shown for title, frame in each.items()},
        "Images that were disguised beforehand": pd.DataFrame(_list_disguises(opened)),
        "Runs": pd.DataFrame([_overview(run) for run in opened]),
        "Exchanges": _join_runs(opened, _exchanges, "exchange"),
        "Durations": _join_runs(opened, _seconds, "stage"),
    }
    return {title: make_printable(frame) for title, frame in found.items() if not frame.empty}


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


def _list_disguises(runs: Sequence[Run]) -> list[dict[str, object]]:
    """List how images were disguised; tables then call disguised images plain."""
    return [{"run": run.name, "disguise": run.disguise} for run in runs if run.disguise]


def _exchanges(run: Run) -> pd.DataFrame:
    totals = run.info.get("exchanges", {})
    return pd.DataFrame([{"exchange": kind, **total} for kind, total in totals.items()])


def _seconds(run: Run) -> pd.DataFrame:
    return pd.DataFrame(run.info.get("seconds", {}).items(), columns=["stage", "seconds"])


def _join_runs(runs: Sequence[Run], table: Callable[[Run], pd.DataFrame], key: str) -> pd.DataFrame:
    there = {run.name: frame for run in runs if not (frame := table(run)).empty}
    return join_side_by_side(there, key, len(runs) > 1)
