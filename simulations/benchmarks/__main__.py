"""``make bench``: print all measurements as a table and save them as CSV."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pudica.clients.data import catalogue
from pudica.simulations.benchmarks import (
    apps,
    disguises,
    exchange,
    facemix,
    federated,
    generator,
    memory,
    split,
)
from pudica.simulations.benchmarks.measure import Row, build_table
from pudica.simulations.display import print_frame
from pudica.simulations.engines.cluster import connect
from pudica.strategies.core.experiment import RayConfig
from pudica.strategies.core.spreadsheets import write_csv

BENCHMARKS: dict[Callable[[int], list[Row]], set[str]] = {
    generator.measure_rows: {"mnist"},
    split.measure_rows: {"mnist"},
    memory.measure_rows: {"mnist"},
    disguises.measure_rows: {"mnist", "cifar10"},
    federated.measure_rows: {"mnist"},
    facemix.measure_rows: {"utkface"},
}
"""Benchmarks, and the data sets they need."""


def main(
    repeats: Annotated[
        int, typer.Option(min=1, help="Repetitions of each; medians are shown.")
    ] = 5,
    out: Annotated[Path, typer.Option(help="Where the CSV goes.")] = Path("results/bench.csv"),
) -> None:
    """Run all benchmarks, on an idle machine; ratios carry over to others, seconds do not."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows: list[Row] = []
    with connect(RayConfig()):
        rows += exchange.measure_rows(repeats)
        rows += apps.measure_rows(repeats)
        available = {entry.name for entry in catalogue() if entry.present}
        for measure, needed in BENCHMARKS.items():
            if needed <= available:
                rows += measure(repeats)
            else:
                missing = ", ".join(sorted(needed - available))
                typer.echo(f"{measure.__module__}: {missing} not found (set PUDICA_DATA)", err=True)
    frame = build_table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(frame, out)
    print_frame(frame, f"Benchmarks, medians of {repeats}")
    typer.echo(out)
    sys.exit(0 if all(row.is_within_bar for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
