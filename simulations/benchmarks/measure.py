"""Measuring repeatedly, and the rows that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from pudica.models.compute import Compute, ComputeConfig


class Samples(NamedTuple):
    """What repeated measuring gave: our values and the rival's, run by run, if there is one."""

    ours: Sequence[float]
    rival: Sequence[float] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the benchmark table.

    Attributes
    ----------
    name, what, unit : str
    ours, rival : float
        Medians of our measurements and of the rival's; NaN if there is no rival.
    ratio : float
        Median ratio, ours over rival, or the median value if there is no rival.
    low, high : float
        Smallest and largest ratio (or value) of the single runs.
    bar : float or None
        Largest ratio (or value) allowed, if any.
    runs : int
        Number of single runs.
    """

    name: str
    what: str
    ours: float
    rival: float
    unit: str
    ratio: float
    low: float
    high: float
    bar: float | None
    runs: int

    @property
    def is_within_bar(self) -> bool:
        """Whether the ratio is within the bar."""
        return self.bar is None or self.ratio <= self.bar

    @property
    def held(self) -> str:
        """Whether the bar is held, as a word; empty if there is none."""
        if self.bar is None:
            return ""
        return "yes" if self.is_within_bar else "NO"


@dataclass(frozen=True)
class Benchmark:
    """A row of the benchmark table that can be measured by itself.

    Attributes
    ----------
    name : str
        Lower-case words and numbers with dashes between them.
    what : str
        What is measured, against which rival.
    unit : str
    bar : float or None
        Largest ratio (or value) allowed, if any.
    measure : callable
        Takes the number of repetitions, and returns the samples.
    data : tuple of str
        Data sets that it needs.
    ray : bool
        Whether Ray must be connected.
    quick : bool
        Whether two repetitions take seconds.
    """

    name: str
    what: str
    unit: str
    bar: float | None
    measure: Callable[[int], Samples]
    data: tuple[str, ...] = ()
    ray: bool = False
    quick: bool = False

    def measure_row(self, repeats: int) -> Row:
        """Measure the row."""
        return make_row(self.name, self.what, self.unit, self.bar, self.measure(repeats))


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that ``work()`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def use_threads(count: int) -> AbstractContextManager[None]:
    """Let PyTorch use this many threads within the context."""
    return Compute(ComputeConfig(device="cpu", threads=count)).use_threads()


def make_row(name: str, what: str, unit: str, bar: float | None, samples: Samples) -> Row:
    """Return a row for the ratio of ours over rival, paired run by run, or for our values alone."""
    ours, rival = samples
    ratios = ours if rival is None else [a / b for a, b in zip(ours, rival, strict=True)]
    return Row(
        name,
        what,
        median(ours),
        float("nan") if rival is None else median(rival),
        unit,
        median(ratios),
        min(ratios),
        max(ratios),
        bar,
        len(ratios),
    )
