"""Three rounds of FedAvg with ten owners, against the same apps on Flower's own simulation."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

import torch
from flwr.serverapp import Grid

from pudica.clients.app import app
from pudica.simulations.benchmarks.measure import (
    Row,
    make_ratio_row,
    make_value_row,
    measure_seconds,
)
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.simulations.engines.ray import RayGrid
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.dlmt.experiment import DlmtExperiment
from pudica.strategies.dlmt.federated import Federated
from pudica.strategies.dlmt.session import Session
from pudica.strategies.loading import load_experiment

ROUNDS = 3
SIZES = {"short": 300, "longer": 20_000}
SETTINGS = [
    "dlmt.cases={}",
    f"dlmt.training.epochs={ROUNDS}",
    f"dlmt.evaluate_every={ROUNDS}",
    "dlmt.measures=false",
]


def load_benchmark_experiment(images: int, threads: int = 1) -> DlmtExperiment:
    """Load dlmt-federated-mnist with a single case and this many training images."""
    settings = [*SETTINGS, f"data.limit={images}", f"client.threads={threads}"]
    return cast(DlmtExperiment, load_experiment("dlmt-federated-mnist", settings))


class FederatedRounds:
    """Repeats the same training from the start.

    Parameters
    ----------
    experiment : DlmtExperiment
    grid : Grid
    directory : Path
    """

    def __init__(self, experiment: DlmtExperiment, grid: Grid, directory: Path) -> None:
        recorder = Recorder(directory, experiment, "benchmark")
        cohort = Cohort.on(grid, experiment.client, recorder)
        cohort.nodes = gather(cohort, experiment.names(), len(experiment.names()))
        self.session = Session(cohort, experiment, "main", experiment.dlmt)
        self.session.join(turn=-1)
        self.session.normalise()
        self.train()  # so that each node has loaded its data

    def train(self) -> None:
        """Train and measure."""
        Federated(self.session).train()

    @property
    def accuracy(self) -> float:
        """Accuracy of the last training."""
        rows = self.session.recorder.rows
        return float([row for row in rows if row["stage"] == "test"][-1]["value"])


def measure_rows(repeats: int) -> list[Row]:
    """Measure on all engines; Ray must be connected."""
    return [row for name, images in SIZES.items() for row in _measure_size(name, images, repeats)]


def _measure_size(name: str, images: int, repeats: int) -> list[Row]:
    command = [
        sys.executable,
        "-m",
        "pudica.simulations.benchmarks.federated",
        str(images),
        str(repeats),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    flower = json.loads(done.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "inprocess", Path(folder) / "ray"
        in_process, accuracy = _measure_in_process(here, images, repeats)
        on_ray, of_ray = _measure_on_ray(there, images, repeats)
    # At least twice as fast if rounds are short, and not slower otherwise.
    bar = 0.5 if name == "short" else 1.0
    what = f"FedAvg, 10 owners, {ROUNDS} {name} rounds ({images:,} images of MNIST)"
    difference = max(abs(each - flower["accuracy"]) for each in (accuracy, of_ray))
    return [
        make_ratio_row(f"{what}, Ray / Flower's simulation", "s", bar, on_ray, flower["seconds"]),
        make_ratio_row(f"{what}, in process / the same", "s", bar, in_process, flower["seconds"]),
        make_value_row(f"{what}, accuracies apart", "", 0.01, [difference]),
    ]


def _measure_in_process(directory: Path, images: int, repeats: int) -> tuple[list[float], float]:
    # As many cores as the other engines use.
    experiment = load_benchmark_experiment(images, threads=2)
    config = build_run_config(experiment, directory, "benchmark")
    build_server_context(config)
    return _time_rounds(
        FederatedRounds(experiment, InProcessGrid(app, 10, config), directory), repeats
    )


def _measure_on_ray(directory: Path, images: int, repeats: int) -> tuple[list[float], float]:
    experiment = load_benchmark_experiment(images)
    config = build_run_config(experiment, directory, "benchmark")
    build_server_context(config)
    grid = RayGrid(app, 10, config, workers=2)
    try:
        return _time_rounds(FederatedRounds(experiment, grid, directory), repeats)
    finally:
        grid.stop()


def _time_rounds(rounds: FederatedRounds, repeats: int) -> tuple[list[float], float]:
    return [measure_seconds(rounds.train) for _ in range(repeats)], rounds.accuracy


def main(images: int, repeats: int) -> None:
    """Print the seconds of each training on Flower's simulation, and the accuracy."""
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    experiment = load_benchmark_experiment(images)
    measured: dict[str, object] = {}
    server = ServerApp()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        config = build_run_config(experiment, directory, "flower")

        @server.main()
        def train(grid: Grid, context: Context) -> None:
            context.run_config = dict(config)
            torch.set_num_threads(1)
            times, accuracy = _time_rounds(FederatedRounds(experiment, grid, directory), repeats)
            measured.update(seconds=times, accuracy=accuracy)

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, app, 10, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
