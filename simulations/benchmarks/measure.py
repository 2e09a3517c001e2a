"""Timing and memory, several times, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from statistics import median

import pandas as pd

from pudica.models.compute import Compute, ComputeConfig


@dataclass(frozen=True)
class Row:
    """One line of the benchmark table.

    Attributes
    ----------
    what, unit : str
    ours, rival : float
        Medians.
    ratio : float
        The measurement the bar is about.
    low, high : float
        The least and the largest ratio (or value) of the single runs.
    bar : float or None
        The most that is allowed; None for what is only to be known.
    """

    what: str
    ours: float
    rival: float
    unit: str
    ratio: float
    low: float
    high: float
    bar: float | None

    @property
    def is_within_bar(self) -> bool:
        """Whether the bar is held."""
        return self.bar is None or self.ratio <= self.bar


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that ``work()`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def use_threads(count: int) -> AbstractContextManager[None]:
    """Let PyTorch use so many threads inside."""
    return Compute(ComputeConfig(device="cpu", threads=count)).use_threads()


def make_ratio_row(
    what: str, unit: str, bar: float | None, ours: Sequence[float], rival: Sequence[float]
) -> Row:
    """Return the row of a ratio, ours over rival, paired run by run."""
    ratios = [a / b for a, b in zip(ours, rival, strict=True)]
    return Row(
        what,
        median(ours),
        median(rival),
        unit,
        median(ratios),
        min(ratios),
        max(ratios),
        bar,
    )


def make_value_row(what: str, unit: str, bar: float, values: Sequence[float]) -> Row:
    """Return the row of a value with a bar of its own."""
    middle = median(values)
    return Row(what, middle, float("nan"), unit, middle, min(values), max(values), bar)


def build_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return all rows as a frame, with a column that says whether the bar is held."""
    return pd.DataFrame([{**asdict(row), "held": _format_held(row)} for row in rows])


def _format_held(row: Row) -> str:
    if row.bar is None:
        return ""
    return "yes" if row.is_within_bar else "NO"
