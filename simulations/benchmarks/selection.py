"""All rows of the benchmark table, and those that are chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import filter as match_names

from pudica.models.errors import unknown_name_error
from pudica.simulations.benchmarks import (
    apps,
    disguises,
    exchange,
    facemix,
    federated,
    generator,
    memory,
    split,
    studies,
)
from pudica.simulations.benchmarks.measure import Benchmark

BENCHMARKS: list[Benchmark] = [
    *exchange.BENCHMARKS,
    *apps.BENCHMARKS,
    *generator.BENCHMARKS,
    *split.BENCHMARKS,
    *memory.BENCHMARKS,
    *disguises.BENCHMARKS,
    *federated.BENCHMARKS,
    *facemix.BENCHMARKS,
    *studies.BENCHMARKS,
]


def select_benchmarks(patterns: Sequence[str]) -> list[Benchmark]:
    """Return the benchmarks with these names, or all if there are none, in the table's order.

    Parameters
    ----------
    patterns : sequence of str
        Names, or patterns of names such as ``exchange-*``.

    Raises
    ------
    RequestError
        If one fits no name.
    """
    names = [benchmark.name for benchmark in BENCHMARKS]
    chosen = set[str]() if patterns else set(names)
    for pattern in patterns:
        found = match_names(names, pattern)
        if not found:
            raise unknown_name_error("row", pattern, names)
        chosen.update(found)
    return [benchmark for benchmark in BENCHMARKS if benchmark.name in chosen]
