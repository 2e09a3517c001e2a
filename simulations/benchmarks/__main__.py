"""``make bench``: print all measurements as a table and save them as CSV."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clients.data import catalogue
from simulations.benchmarks import disguises, exchange, federated, generator, memory, split
from simulations.benchmarks.measure import Row, table
from simulations.display import print_frame
from simulations.engines.ray import connected
from strategies.experiment import RayConfig


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
        if {"mnist", "cifar10"} <= here:
            rows += generator.rows(repeats) + split.rows(repeats) + memory.rows(repeats)
            rows += disguises.rows(repeats) + federated.rows(repeats)
        else:
            typer.echo("MNIST or CIFAR-10 is not here (set PUDICA_DATA): left out", err=True)
    frame = table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out, index=False)
    print_frame(frame, f"Benchmarks, medians of {repeats}")
    typer.echo(out)
    sys.exit(0 if all(row.held for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
