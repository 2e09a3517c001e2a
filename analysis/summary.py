"""The tables that a person looks at first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from pudica.analysis.dlmt import dlmt_accuracy, dlmt_breaks, dlmt_measures
from pudica.analysis.facemix import (
    facemix_accuracy,
    facemix_attacks,
    facemix_reconstructions,
    facemix_transmission,
)
from pudica.analysis.runs import Run, RunPaths, open_runs, runs_of
from pudica.analysis.split import split_accuracy, split_costs
from pudica.analysis.themis import (
    board,
    competition,
    themis_protection,
    themis_table1,
    themis_table2,
)

OVERVIEW = ("system", "experiment", "engine", "status", "seed", "started")
RUN = ["run", "experiment"]
LONGEST = 8
SEARCH = "search_space"
TELLING = ("m_5", "m_20", "b_minimum_20", "b_minimum_400", "b_mid_range_400", "known_pair")
DISGUISE = ("shield", "key", "train")
SETTINGS = ("shield", "epsilon", "batch_size", "front", "cut")
SIDE_BY_SIDE = ("rank", "plain_accuracy", "trained_accuracy")


def tables(runs: RunPaths) -> dict[str, pd.DataFrame]:
    """Return the tables of one or several runs by title, as far as there is something in them.

    A single run shows its leaderboards in full. Of several, what belongs together stands side
    by side: a column per run and figure.

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
    of = {name: runs_of(name, opened) for name in SYSTEMS}
    shown = [SYSTEMS[name](own) for name, own in of.items() if own]
    found = {
        **{title: frame for each in shown for title, frame in each.items()},
        "Images that were disguised beforehand": pd.DataFrame(_disguises(opened)),
        "Runs": pd.DataFrame([_overview(run) for run in opened]),
        "Exchanges": _per_run(opened, _exchanges, "exchange"),
        "Durations": _per_run(opened, _seconds, "stage"),
    }
    return {title: _printable(frame) for title, frame in found.items() if not frame.empty}


def _themis(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    cases = list(dict.fromkeys(case for run in runs for case in competition(run).each_case()))
    found = {}
    for case in cases:
        title = "Leaderboard" if len(cases) == 1 else f"Leaderboard, {case}"
        found[title] = _leaderboards(runs, case)
    if len(cases) > 1:
        found["Ranks in each case"] = themis_table2(runs)
    found["Protection"] = themis_protection(runs)
    table1 = themis_table1(runs)
    if table1["trained_accuracy_published"].notna().any():
        found["Beside the paper"] = table1.drop(columns=table1.filter(like="_std"))
    return _named(found, runs)


def _split(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    found = {"Test accuracy": split_accuracy(runs).drop(columns=[*SETTINGS])}
    if found["Test accuracy"]["published"].isna().all():
        found["Test accuracy"] = found["Test accuracy"].drop(columns=["published", "difference"])
    costs = split_costs(runs)
    found["What a device pays, per epoch and per batch"] = (
        costs if len(costs) <= LONGEST else _mean_device(costs)
    )
    return _named(found, runs)


def _dlmt(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    found = {
        "Accuracy on disguised test images": dlmt_accuracy(runs),
        "What disguises cost and hide": dlmt_measures(runs),
        "How much of the key attacks find (%), by how many images they see": _most_telling(
            dlmt_breaks(runs)
        ),
    }
    if found["Accuracy on disguised test images"]["published"].isna().all():
        found["Accuracy on disguised test images"] = found[
            "Accuracy on disguised test images"
        ].drop(columns="difference")
    # A case is mostly called after its disguise.
    return _named({t: f.drop(columns=[*DISGUISE], errors="ignore") for t, f in found.items()}, runs)


def _facemix(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    found = {
        "Accuracy on test images, and what the edge pays": _without_attacks(runs),
        "What crosses for one image, over 15 and 30 Mbit/s": facemix_transmission(runs),
        "How often attackers are right, mean over classes (%)": facemix_attacks(runs),
        "Images that attacks rebuilt": facemix_reconstructions(runs),
    }
    return _named(found, runs)


def _without_attacks(runs: Sequence[Run]) -> pd.DataFrame:
    """Leave out what a case is called after, and the attacks, which have a table of their own."""
    table = facemix_accuracy(runs)
    attacks = [name for name in table if str(name).startswith("attack_")]
    return table.drop(columns=["place", "shield", "pre", *attacks])


def _most_telling(breaks: pd.DataFrame) -> pd.DataFrame:
    """Return what fits on a screen: each attack with the most images it is tried with."""
    return breaks[["run", "case", SEARCH, *TELLING]].rename(columns={SEARCH: f"log10 {SEARCH}"})


def _mean_device(costs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over a case's devices, where there are too many for a table."""
    groups = costs.groupby(["run", "case"], sort=False)
    mean = groups.mean(numeric_only=True)
    mean.insert(0, "devices", groups.size())
    return mean.reset_index()


def _named(found: dict[str, pd.DataFrame], runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Leave out of a single run's tables its name, which would be the same in every row."""
    if len(runs) > 1:
        return found
    return {title: frame.drop(columns=RUN, errors="ignore") for title, frame in found.items()}


def _leaderboards(runs: Sequence[Run], case: str) -> pd.DataFrame:
    boards = {}
    for run in runs:
        settings = competition(run)
        if case in settings.each_case():
            boards[run.name] = board(run, case, settings.release_bounds[0])
    there = {name: frame for name, frame in boards.items() if frame is not None}
    if len(runs) > 1:
        there = {n: f.filter(["model", *SIDE_BY_SIDE]) for n, f in there.items()}
    return _side_by_side(there, "model", len(runs) > 1)


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


def _disguises(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return how images were disguised: what tables then call plain is not."""
    return [{"run": run.name, "disguise": run.disguise} for run in runs if run.disguise]


def _exchanges(run: Run) -> pd.DataFrame:
    totals = run.info.get("exchanges", {})
    return pd.DataFrame([{"exchange": kind, **total} for kind, total in totals.items()])


def _seconds(run: Run) -> pd.DataFrame:
    return pd.DataFrame(run.info.get("seconds", {}).items(), columns=["stage", "seconds"])


def _per_run(runs: Sequence[Run], table: Callable[[Run], pd.DataFrame], key: str) -> pd.DataFrame:
    there = {run.name: frame for run in runs if not (frame := table(run)).empty}
    return _side_by_side(there, key, len(runs) > 1)


def _side_by_side(frames: Mapping[str, pd.DataFrame], key: str, named: bool) -> pd.DataFrame:
    """Return frames of several runs as one, with a column per figure and run.

    Parameters
    ----------
    frames : mapping of str to DataFrame
        By run.
    key : str
        The column whose values name the rows.
    named : bool
        Whether columns say whose they are.
    """
    if not frames:
        return pd.DataFrame()
    if not named:
        return next(iter(frames.values()))
    keyed = {run: _whole(frame.set_index(key)) for run, frame in frames.items()}
    rows = list(dict.fromkeys(row for frame in keyed.values() for row in frame.index))
    figures = dict.fromkeys(str(figure) for frame in keyed.values() for figure in frame)
    wide = {
        f"{figure} ({run})": frame[figure]
        for figure in figures
        for run, frame in keyed.items()
        if figure in frame
    }
    return pd.DataFrame(wide, index=rows).rename_axis(index=key).reset_index()


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep whole numbers whole where a run lacks a row that another has."""
    return frame.astype(dict.fromkeys(frame.select_dtypes("int64"), "Int64"))


def _printable(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out empty columns, and turn missing whole numbers into None."""
    frame = frame.dropna(axis="columns", how="all")
    for name in frame.select_dtypes("Int64"):
        if frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


SYSTEMS: Mapping[str, Callable[[Sequence[Run]], dict[str, pd.DataFrame]]] = {
    "dlmt": _dlmt,
    "facemix": _facemix,
    "split": _split,
    "themis": _themis,
}
