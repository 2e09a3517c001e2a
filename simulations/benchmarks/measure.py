"""Measuring repeatedly, and rows of the benchmark table."""

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
        Medians of our measurements and of the rival's.
    ratio : float
        Median ratio, ours over rival, or the median value if there is no rival.
    low, high : float
        Smallest and largest ratio (or value) of the single runs.
    bar : float or None
        Largest ratio (or value) allowed, if any.
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
        """Whether the ratio is within the bar."""
        return self.bar is None or self.ratio <= self.bar


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that ``work()`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def use_threads(count: int) -> AbstractContextManager[None]:
    """Let PyTorch use this many threads within the context."""
    return Compute(ComputeConfig(device="cpu", threads=count)).use_threads()


def make_ratio_row(
    what: str, unit: str, bar: float | None, ours: Sequence[float], rival: Sequence[float]
) -> Row:
    """Return a row for the ratio of ours over rival, paired run by run."""
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
    """Return a row for a value without a rival."""
    middle = median(values)
    return Row(what, middle, float("nan"), unit, middle, min(values), max(values), bar)


def build_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return all rows as a frame, with a column that says whether each is within its bar."""
    return pd.DataFrame([{**asdict(row), "held": _format_held(row)} for row in rows])


def _format_held(row: Row) -> str:
    if row.bar is None:
        return ""
    return "yes" if row.is_within_bar else "NO"
