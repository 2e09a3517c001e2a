"""Runs that differ only by their seed, taken together: mean, 95 % interval and number."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from pudica.analysis.runs import Run
from pudica.models.printable import escape_hidden

CONFIDENCE = 0.95
INTERVAL = "_ci"
"""Suffix of a figure's interval: half its width, to be added and subtracted."""
COUNT = "n"
SIGN = " ± "
FIGURE = re.compile(rf"-?\d+(\.\d+)?({SIGN}\d+(\.\d+)?)?")
PUBLISHED = "published"
UNRELATED = ("seed", "name", "description", "log")
"""Settings in which runs of one group may differ, or that a label need not repeat."""


def group_by_seed(runs: Sequence[Run]) -> dict[str, str]:
    """Return the group of each run, by name: done runs of equal settings but different seeds.

    A group of one run is called by the run's name. Others are called by their experiment, and by
    the settings in which they differ from other groups of it. Of runs with the same settings and
    the same seed, which are no independent measurements, each is in a group of its own; so is a
    run that is not done, whose figures are those of a shorter one.
    """
    groups: dict[tuple[str, Any], list[Run]] = {}
    seen: dict[tuple[str, Any], int] = {}
    for run in runs:
        key = json.dumps(_comparable(run), sort_keys=True, default=str)
        repetition = seen.get((key, run.info.get("seed")), 0)
        if run.info.get("status") == "done":
            seen[key, run.info.get("seed")] = repetition + 1
            groups.setdefault((key, repetition), []).append(run)
        else:
            groups[key, run.name] = [run]
    labels = label_variants([flatten(_comparable(own[0])) for own in groups.values()])
    taken: dict[str, int] = {}
    found: dict[str, str] = {}
    for own, label in zip(groups.values(), labels, strict=True):
        text = own[0].name if len(own) == 1 else label
        taken[text] = taken.get(text, 0) + 1
        text = text if taken[text] == 1 else f"{text} ({taken[text]})"
        found |= dict.fromkeys((run.name for run in own), text)
    return {run.name: found[run.name] for run in runs}


def _comparable(run: Run) -> dict[str, Any]:
    """Return what runs of a group have in common."""
    own = {key: value for key, value in run.settings.items() if key not in UNRELATED}
    return {"": run.info.get("experiment", ""), **own}


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys, as ``--set`` takes them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inside = value
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inside = dict(enumerate(value))
        is_nested = isinstance(inside, Mapping) and bool(inside)
        flat |= flatten(inside, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


def label_variants(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each mapping of dotted settings what tells it from the others, in short.

    The setting ``""`` is the experiment's name, with which each label begins.
    """
    names = dict.fromkeys(str(own[""]) for own in variants)
    short = {name: _find_varied([own for own in variants if own[""] == name]) for name in names}
    return [" ".join(_build_label(own, short[str(own[""])])) for own in variants]


def _build_label(own: Mapping[str, Any], short: Mapping[str, str]) -> Iterator[str]:
    yield str(own[""])
    for key, text in short.items():
        if key in own:
            yield f"{text}={format_setting(own[key])}"


def _find_varied(variants: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the short name of each setting in which variants differ, or that some lack."""
    values: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for own in variants:
        counts.update(own.keys())
        for key, value in own.items():
            values.setdefault(key, set()).add(repr(value))
    varied = [k for k, seen in values.items() if len(seen) > 1 or counts[k] < len(variants)]
    return dict(zip(varied, shorten_keys(varied), strict=True))


def shorten_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, with more parts where that is ambiguous."""
    depths = dict.fromkeys(keys, 1)
    while True:
        short = [".".join(key.split(".")[-depth:]) for key, depth in depths.items()]
        clashing = [
            key
            for key, text in zip(depths, short, strict=True)
            if short.count(text) > 1 and text != key
        ]
        if not clashing:
            return short
        for key in clashing:
            depths[key] += 1


def format_setting(value: Any) -> str:
    """Return a setting's value in short, as in YAML."""
    if isinstance(value, str):
        return value.rstrip("/").rsplit("/", 1)[-1]  # of a path its end
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str).replace('"', "")


def average_seeds(
    table: pd.DataFrame, runs: Sequence[Run], keys: Sequence[str], spread: bool = True
) -> pd.DataFrame:
    """Return a table of runs with the rows of a group's seeds taken together.

    Parameters
    ----------
    table : DataFrame
        Rows by ``run`` and ``keys``.
    runs : sequence of Run
        The table's.
    keys : sequence of str
        Columns that identify a row among those of a run.
    spread : bool
        With False the table is returned as it is, a row per run.

    Returns
    -------
    DataFrame
        The table's columns, ``run`` being the group: figures are means over seeds, texts that
        differ are counted. Then ``…_ci`` for each figure: half the width of Student's 95 %
        interval of the mean, NaN for a single seed; and ``n``, the number of seeds with this row.
    """
    if not spread:
        return table
    figures = [str(name) for name in table.select_dtypes("number") if name not in keys]
    measured = [name for name in figures if not name.endswith(PUBLISHED)]
    groups = table["run"].map(group_by_seed(runs))
    grouped = table.assign(run=groups).groupby(["run", *keys], sort=False, dropna=False)
    if len(grouped) == len(table):  # nothing to take together: types stay as they are
        found = table.assign(run=groups)
        return found.assign(**{f"{name}{INTERVAL}": float("nan") for name in measured}, n=1)
    parts: dict[str, pd.Series] = {}
    for name in map(str, table.columns.drop(["run", *keys])):
        if name in measured:
            parts[name] = grouped[name].mean().astype("float64")
        else:
            parts[name] = grouped[name].agg("first" if name in figures else _join_texts)
    for name in measured:
        values = grouped[name]
        parts[f"{name}{INTERVAL}"] = compute_interval(values.std(), values.count())
    found = pd.DataFrame(parts).assign(n=grouped.size()).reset_index()
    return found[[*table.columns, *found.columns.drop(list(table.columns))]]


def compute_interval(deviation: pd.Series, count: pd.Series) -> pd.Series:
    """Return half the width of the 95 % interval of means of normal values (Student's t).

    Parameters
    ----------
    deviation : Series
        Standard deviations of the values, with n - 1.
    count : Series of int
        Numbers of values; a single one has no interval.
    """
    there = count.where(count > 1).astype("float64")
    quantiles = pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, there - 1), index=there.index)
    return deviation.astype("float64") * quantiles / there**0.5


def _join_texts(values: pd.Series) -> Any:
    """Return what all texts say, or how many different ones there are."""
    different = list(dict.fromkeys(values.dropna()))
    if len(different) > 1:
        return f"{len(different)} different"
    return different[0] if different else None


def keep_columns(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return some columns of a table in this order, with their intervals, and ``n``."""
    intervals = [f"{name}{INTERVAL}" for name in names]
    further = [name for name in (*intervals, COUNT) if name in table and name not in names]
    return table[[*names, *further]]


def drop_columns(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a table without some columns and their intervals."""
    intervals = [f"{name}{INTERVAL}" for name in names]
    return table.drop(columns=[*names, *(name for name in intervals if name in table)])


def join_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people: figures with their intervals in one column, ``1.25 ± 0.03``.

    A column without figures below 1,000, of bytes say, is rounded to whole numbers. The column
    ``n`` is left out where it is the same in all rows: :func:`describe_spread` says it.
    """
    found = table.copy()
    halves = {name: found.pop(name) for name in map(str, table) if name.endswith(INTERVAL)}
    for name in [str(name) for name in found if found[name].dtype.kind == "f"]:
        half = halves.get(f"{name}{INTERVAL}", pd.Series(math.nan, found.index))
        digits = 0 if found[name].abs().min() >= 1000 else 2
        if half.notna().any() or not digits:
            pairs = zip(found[name], half, strict=True)
            found[name] = [_join_cell(value, width, digits) for value, width in pairs]
    if COUNT in found and len(set(found[COUNT])) <= 1:
        found = found.drop(columns=COUNT)
    return found


def _join_cell(value: Any, half: float, digits: int) -> str | None:
    if pd.isna(value):
        return None
    # What is the same for all seeds has no spread.
    return f"{value:.{digits}f}" + (f"{SIGN}{half:.{digits}f}" if half > 0 else "")


def is_figure(column: pd.Series) -> bool:
    """Return whether a column holds numbers, if only as :func:`join_intervals` writes them."""
    if column.dtype.kind in "fiu":
        return True
    texts = [value for value in column if isinstance(value, str)]
    return bool(texts) and all(FIGURE.fullmatch(text) for text in texts)


def describe_spread(table: pd.DataFrame) -> str:
    """Return in words what figures of a table are, empty if each is of a single run."""
    counts = set(table[COUNT]) if COUNT in table else {1}
    if counts == {1}:
        return ""
    number = f"{counts.pop()} seeds" if len(counts) == 1 else "n seeds"
    return f"mean and {CONFIDENCE:.0%} interval of {number}"


def format_cell(value: Any) -> str:
    """Return a cell as people read it: numbers to two places, nothing for what is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return "" if value is None or value is pd.NA else escape_hidden(str(value))
