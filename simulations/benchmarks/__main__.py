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
    disguises,
    exchange,
    facemix,
    federated,
    generator,
    memory,
    split,
)
from pudica.simulations.benchmarks.measure import Row, table
from pudica.simulations.display import print_frame
from pudica.simulations.engines.ray import connected
from pudica.strategies.core.experiment import RayConfig
from pudica.strategies.core.spreadsheets import write_csv

MEASURED: dict[Callable[[int], list[Row]], set[str]] = {
    generator.rows: {"mnist"},
    split.rows: {"mnist"},
    memory.rows: {"mnist"},
    disguises.rows: {"mnist", "cifar10"},
    federated.rows: {"mnist"},
    facemix.rows: {"utkface"},
}
"""What needs which data sets."""


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; medians are shown.")] = 5,
    out: Annotated[Path, typer.Option(help="Where the CSV goes.")] = Path("results/bench.csv"),
) -> None:
    """Measure on a quiet machine; ratios hold elsewhere, seconds do not."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows: list[Row] = []
    with connected(RayConfig()):
        rows += exchange.rows(repeats)
        here = {entry.name for entry in catalogue() if entry.present}
        for measured, needed in MEASURED.items():
            if needed <= here:
                rows += measured(repeats)
            else:
                missing = ", ".join(sorted(needed - here))
                typer.echo(f"{measured.__module__}: {missing} not here (set PUDICA_DATA)", err=True)
    frame = table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(frame, out)
    print_frame(frame, f"Benchmarks, medians of {repeats}")
    typer.echo(out)
    sys.exit(0 if all(row.held for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
