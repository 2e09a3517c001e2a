"""The benchmark table: a line on the screen, and a file that keeps each row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Hashable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.models.errors import RequestError
from pudica.simulations.benchmarks.measure import Benchmark, Row
from pudica.strategies.core.spreadsheets import read_csv, write_csv

COLUMNS = [*(field.name for field in fields(Row)), "held"]

Record = dict[Hashable, Any]

HEADER = (
    f"{'row':26} {'ours':>7} {'rival':>7} {'unit':5} {'ratio':>6} {'low–high':>13} {'bar':>4} held"
)


def format_row(row: Row) -> str:
    """Return a row as a line of 80 columns at most, to be printed below :data:`HEADER`."""
    ratio, low, high = (_format_ratio(value) for value in (row.ratio, row.low, row.high))
    bar = "" if row.bar is None else f"{row.bar:.3g}"
    return (
        f"{row.name:26} {_format_value(row.ours):>7} {_format_value(row.rival):>7} {row.unit:5} "
        f"{ratio:>6} {f'{low}–{high}':>13} {bar:>4} {row.held}"
    ).rstrip()


def _format_value(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _format_ratio(value: float) -> str:
    places = 4 if value < 0.1 else 2 if value < 100 else 0
    return f"{value:.{places}f}"


def format_benchmark(benchmark: Benchmark) -> str:
    """Return a benchmark's name, what it needs, and what it measures."""
    marks = {"Ray": benchmark.ray, "--quick": benchmark.quick}
    needs = [*benchmark.data, *(mark for mark, is_set in marks.items() if is_set)]
    what = textwrap.fill(benchmark.what, 79, initial_indent="    ", subsequent_indent="    ")
    return f"{benchmark.name:28}{', '.join(needs)}".rstrip() + f"\n{what}"


def build_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a frame, with a column that says whether each is within its bar."""
    return pd.DataFrame([{**asdict(row), "held": row.held} for row in rows])


def keep_row(row: Row, path: Path) -> None:
    """Put a row into a table's file, instead of that of its name, if the file has one."""
    kept = read_rows(path)
    kept[row.name] = build_frame([row]).to_dict("records")[0]
    write_csv(pd.DataFrame(list(kept.values())), path)


def read_rows(path: Path) -> dict[str, Record]:
    """Return the rows of a table's file by name; none if there is no such file.

    Raises
    ------
    RequestError
        If the file is no benchmark table.
    """
    if not path.exists():
        return {}
    try:
        frame = read_csv(path, "name").astype(object)
    except (ValueError, OSError):
        frame = pd.DataFrame()
    if list(frame.columns) != COLUMNS:
        raise RequestError(
            f"--out: {path} is not a table of benchmarks: name another file, or remove it"
        )
    return {row["name"]: row for row in frame.where(frame.notna(), None).to_dict("records")}
