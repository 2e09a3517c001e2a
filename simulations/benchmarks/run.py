"""Measuring rows one after the other: each is printed and kept as soon as it is there."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
import typer

from pudica.clients.data import catalogue
from pudica.models.errors import RequestError
from pudica.simulations.benchmarks.measure import Benchmark, Row
from pudica.simulations.benchmarks.table import HEADER, format_row, keep_row, read_rows
from pudica.simulations.console import print_message
from pudica.simulations.engines.cluster import connect
from pudica.strategies.core.experiment import RayConfig


class BenchmarkRun:
    """Measures rows, prints them on standard output, and keeps them in a file.

    Parameters
    ----------
    repeats : int
        Repetitions of each row.
    out : Path
        The table's file. Rows of other names stay in it.
    limit : float
        No row is begun after so many seconds.

    Attributes
    ----------
    rows : list of Row
        Those measured.
    failed : list of str
        Names of those that could not be measured.

    Raises
    ------
    RequestError
        If the file is no benchmark table, or can't be written.
    """

    def __init__(self, repeats: int, out: Path, limit: float = float("inf")) -> None:
        _check_writable(out)
        read_rows(out)
        self.rows: list[Row] = []
        self.failed: list[str] = []
        self._repeats = repeats
        self._out = out
        self._limit = limit
        self._start = time.monotonic()

    def measure(self, benchmarks: Sequence[Benchmark]) -> None:
        """Measure rows, except those whose data are missing; connect to Ray for the first use."""
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        logging.getLogger("flwr").setLevel(logging.ERROR)
        present = {entry.name for entry in catalogue() if entry.present}
        typer.echo(HEADER)
        with ExitStack() as ends:
            for number, benchmark in enumerate(benchmarks, 1):
                if reason := self._find_obstacle(benchmark, present):
                    print_message(f"{benchmark.name} is left out: {reason}")
                    continue
                seconds = time.monotonic() - self._start
                what = f"{benchmark.name}: {benchmark.what}"
                print_message(f"{seconds:4.0f} s  {number}/{len(benchmarks)}  {what}")
                self._measure_row(benchmark, ends)

    def _find_obstacle(self, benchmark: Benchmark, present: set[str]) -> str:
        """Return why a row can't be measured; empty if it can."""
        if missing := sorted(set(benchmark.data) - present):
            return f"{', '.join(missing)} not found (set PUDICA_DATA)"
        if time.monotonic() - self._start > self._limit:
            return f"{self._limit:.0f} s are over"
        return ""

    def _measure_row(self, benchmark: Benchmark, ends: ExitStack) -> None:
        """Measure a row and keep it, or say why it failed."""
        try:
            if benchmark.ray and not ray.is_initialized():
                ends.enter_context(connect(RayConfig()))
            row = benchmark.measure_row(self._repeats)
            typer.echo(format_row(row))
            keep_row(row, self._out)
            self.rows.append(row)
        except Exception as error:
            if "PUDICA_TRACEBACK" in os.environ:
                traceback.print_exc()
            print_message(f"error: {benchmark.name}: {type(error).__name__}: {error}")
            self.failed.append(benchmark.name)

    @property
    def missed(self) -> list[str]:
        """Names of the rows that are not within their bars."""
        return [row.name for row in self.rows if not row.is_within_bar]

    def summarize(self) -> str:
        """Return how many rows were kept and where, which missed their bars, and which failed."""
        count = f"{len(self.rows)} row{'s' * (len(self.rows) != 1)}"
        lines = [f"{count} kept in {self._out}, medians of {self._repeats}"]
        if self.missed:
            lines.append(f"bars missed: {', '.join(self.missed)}")
        if self.failed:
            lines.append(f"failed: {', '.join(self.failed)}")
        return "\n".join(lines)


def _check_writable(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out: can't make the folder of {out}: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise RequestError(f"--out: can't write in {out.parent}")
