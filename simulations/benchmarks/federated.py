"""Three rounds of FedAvg with ten owners, against the same apps on Flower's own simulation."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from flwr.serverapp import Grid

from pudica.clients.app import app
from pudica.simulations.benchmarks.engines import run_module, start_ray_grid
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds, use_threads
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.dlmt.experiment import DlmtExperiment
from pudica.strategies.dlmt.federated import Federated
from pudica.strategies.dlmt.session import Session
from pudica.strategies.loading import load_experiment

ROUNDS = 3
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


class Trainings(NamedTuple):
    """Seconds of each training, and the accuracy of the last."""

    seconds: list[float]
    accuracy: float


@cache
def measure_flower(images: int, repeats: int) -> Trainings:
    """Measure on Flower's own simulation, in a process of its own."""
    return Trainings(**run_module(__name__, images, repeats))


@cache
def measure_inprocess(images: int, repeats: int) -> Trainings:
    """Measure in process, with as many cores as the other engines use."""
    experiment = load_benchmark_experiment(images, threads=2)
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        config = build_run_config(experiment, Path(folder), "benchmark")
        build_server_context(config)
        grid = InProcessGrid(app, 10, config)
        return _time_rounds(FederatedRounds(experiment, grid, Path(folder)), repeats)


@cache
def measure_ray(images: int, repeats: int) -> Trainings:
    """Measure on Ray, which must be connected."""
    experiment = load_benchmark_experiment(images)
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        config = build_run_config(experiment, Path(folder), "benchmark")
        build_server_context(config)
        with start_ray_grid(app, 10, config) as grid:
            return _time_rounds(FederatedRounds(experiment, grid, Path(folder)), repeats)


def _time_rounds(rounds: FederatedRounds, repeats: int) -> Trainings:
    return Trainings([measure_seconds(rounds.train) for _ in range(repeats)], rounds.accuracy)


def _compare_with_flower(
    measure: Callable[[int, int], Trainings], images: int, repeats: int
) -> Samples:
    rival = measure_flower(images, repeats)
    return Samples(measure(images, repeats).seconds, rival.seconds)


def _compare_accuracies(images: int, repeats: int) -> Samples:
    rival = measure_flower(images, repeats)
    ours = [measure(images, repeats) for measure in (measure_inprocess, measure_ray)]
    return Samples([max(abs(each.accuracy - rival.accuracy) for each in ours)])


def _build_benchmarks(name: str, images: int, bar: float) -> Iterator[Benchmark]:
    what = f"FedAvg, 10 owners, {ROUNDS} {name} rounds ({images:,} images of MNIST)"
    yield Benchmark(
        f"federated-{name}-ray",
        f"{what}, Ray / Flower's simulation",
        "s",
        bar,
        partial(_compare_with_flower, measure_ray, images),
        data=("mnist",),
        ray=True,
    )
    yield Benchmark(
        f"federated-{name}-inprocess",
        f"{what}, in process / Flower's simulation",
        "s",
        bar,
        partial(_compare_with_flower, measure_inprocess, images),
        data=("mnist",),
    )
    yield Benchmark(
        f"federated-{name}-accuracy",
        f"{what}, accuracies on the three engines apart",
        "",
        0.01,
        partial(_compare_accuracies, images),
        data=("mnist",),
        ray=True,
    )


# At least twice as fast if rounds are short, and not slower otherwise.
BENCHMARKS = [
    *_build_benchmarks("short", 300, bar=0.5),
    *_build_benchmarks("longer", 20_000, bar=1.0),
]


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
            rounds = FederatedRounds(experiment, grid, directory)
            measured.update(_time_rounds(rounds, repeats)._asdict())

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, app, 10, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
