"""Training across the cut, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.clients import shields
from pudica.clients.app import app
from pudica.models.randomness import SecretGenerator, numpy_generator
from pudica.simulations.benchmarks.measure import Row, make_ratio_row, measure_seconds
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.simulations.engines.ray import RayGrid
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.session import Session
from pudica.strategies.split.strategy import SplitLearning
from pudica.strategies.split.system import Case

IMAGES = 12_000
FLOWER_TURNS = 6
BATCH, FEATURES = 64, (80, 4, 4)
SHIELDS = {
    "Laplace": {"name": "batch-norm-laplace", "epsilon": 5},
    "Gaussian": {"name": "norm-gaussian", "epsilon": 5},
    "clip and Gaussian": {"name": "clip-gaussian", "epsilon": 5},
    "clip and Laplace": {"name": "clip-laplace", "epsilon": 5},
}


def load_benchmark_experiment(devices: int, *further: str) -> SplitExperiment:
    """Load split-laplace-mnist with 12,000 images and without a shield."""
    settings = [
        f"data.limit={IMAGES}",
        f"split.devices={devices}",
        "split.cases={}",
        "split.shield={name: none}",
        *further,
    ]
    return cast(SplitExperiment, load_experiment("split-laplace-mnist", settings))


class PlainSplitLoop:
    """The rival: a loop that trains the whole model.

    Parameters
    ----------
    experiment : SplitExperiment
    threads : int
        PyTorch threads it may use.
    batch : int
        Batch size, that of all devices together.
    """

    def __init__(self, experiment: SplitExperiment, threads: int, batch: int) -> None:
        data = experiment.load_data()
        self.images = data.train
        self.threads = threads
        self.batch = batch
        self.model = models.build_for(
            experiment.split.model, data.shape, num_classes=data.num_classes
        ).train()
        learning = experiment.split.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=learning.learning_rate, momentum=learning.momentum
        )

    def epoch(self) -> None:
        """Train one epoch."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        order = numpy_generator(0, "order").permutation(len(self.images))
        for start in range(0, len(order), self.batch):
            x, y = self.images.batch(order[start : start + self.batch])
            loss = cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        torch.set_num_threads(before)


def prepare_training(experiment: SplitExperiment, grid: Grid, directory: Path) -> SplitLearning:
    """Let the devices join; return the strategy whose epochs are timed."""
    recorder = Recorder(directory, experiment, "benchmark")
    cohort = Cohort.on(grid, experiment.client, recorder)
    cohort.nodes = gather(cohort, experiment.names(), 1)
    strategy = Case(Session(cohort, experiment, "main", experiment.split)).prepare()
    strategy.load_arrays(strategy.initial_arrays())
    return strategy


def take_turns(strategy: SplitLearning, arrays: ArrayRecord, count: int) -> ArrayRecord:
    """Take some turns, of one exchange each, as Flower's own loop does."""
    grid = strategy.cohort.grid
    for _ in range(count):
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        moved, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
        arrays = moved or arrays
    return arrays


def measure_rows(repeats: int) -> list[Row]:
    """Measure on both engines; Ray must be connected."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "inprocess", Path(folder) / "ray"
        return [
            *_measure_in_process(here, repeats),
            *_measure_on_ray(there, "average", 1.25, repeats),
            *_measure_on_ray(there, "private", None, repeats),
            *_measure_on_flower(),
            *_measure_shields(repeats),
        ]


def _measure_in_process(directory: Path, repeats: int) -> list[Row]:
    experiment = load_benchmark_experiment(1, "split.front=private")
    config = build_run_config(experiment, directory, "benchmark")
    build_server_context(config)
    training = prepare_training(experiment, InProcessGrid(app, 1, config), directory)
    what = "MNIST epoch across the cut, 1 device, in process / plain loop, 1 thread"
    row = _compare_epochs(what, 1.15, training, PlainSplitLoop(experiment, 1, BATCH), repeats)
    return [row, _measure_traffic(training)]


def _measure_on_ray(directory: Path, front: str, bar: float | None, repeats: int) -> list[Row]:
    experiment = load_benchmark_experiment(4, f"split.front={front}", "split.threads=2")
    config = build_run_config(experiment, directory / front, "benchmark")
    build_server_context(config)
    grid = RayGrid(app, 4, config, workers=2)
    try:
        training = prepare_training(experiment, grid, directory / front)
        what = f"the same, 4 devices, {front} front, Ray, 2 workers / plain loop, 2 threads"
        return [
            _compare_epochs(what, bar, training, PlainSplitLoop(experiment, 2, 4 * BATCH), repeats)
        ]
    finally:
        grid.stop()


def _compare_epochs(
    what: str, bar: float | None, training: SplitLearning, plain: PlainSplitLoop, repeats: int
) -> Row:
    arrays = training.new_arrays()
    epochs = [plain.epoch, lambda: training.run_round(arrays)]
    for epoch in epochs:
        epoch()
    times = [[measure_seconds(epoch) for epoch in epochs] for _ in range(repeats)]
    of_plain, ours = (list(each) for each in zip(*times, strict=True))
    return make_ratio_row(what, "s", bar, ours, of_plain)


def _measure_traffic(training: SplitLearning) -> Row:
    """Compare bytes on the wire with those of activations, labels and gradients alone."""
    cohort = training.cohort
    arrays = take_turns(training, training.new_arrays(), 1)  # so that a gradient is waiting
    before = [list(total) for total in cohort.traffic.values()]
    take_turns(training, arrays, 1)
    (sent, received) = (
        after - then for after, then in zip(*cohort.traffic.values(), before[0], strict=True)
    )
    values = 4 * BATCH * 1280
    payload = 2 * values + 4 * BATCH
    what = "bytes on the wire / of the payload, one turn"
    return make_ratio_row(what, "bytes", 1.02, [sent + received], [payload])


def _measure_shields(repeats: int) -> list[Row]:
    """Time forward and backward through each shield, against a step of the plain loop."""
    plain = PlainSplitLoop(load_benchmark_experiment(1), 1, BATCH)
    steps = -(-IMAGES // BATCH)
    of_step = [1000 * measure_seconds(plain.epoch) / steps for _ in range(repeats)]
    rows = []
    for noise, source in RANDOMNESS.items():
        for name, settings in SHIELDS.items():
            shield = shields.build(shields.parse_config(settings), FEATURES, BATCH)
            ours = [_time_shield(shield, source) for _ in range(repeats)]
            what = f"shield at 64x1280, {name}, {noise} noise / a step of the plain loop"
            # Exact noise on integers takes longer; it is only used where a guarantee is given.
            bar = None if shield.grid else 0.15
            rows.append(make_ratio_row(what, "ms", bar, ours, of_step))
    return rows


def _time_shield(shield: shields.Shield, source: Callable[[], object]) -> float:
    x = torch.rand(BATCH, *FEATURES, requires_grad=True)

    def run_once() -> None:
        shield.protect(x, source())[0].sum().backward()  # type: ignore[arg-type,no-untyped-call]

    run_once()
    return 1000 * median(measure_seconds(run_once) for _ in range(20))


RANDOMNESS: dict[str, Callable[[], object]] = {
    "seeded": lambda: numpy_generator(0, "noise"),
    "secret": lambda: SecretGenerator(bytes(32), bytes(4 * BATCH * 1280)),
}


def _measure_on_flower() -> list[Row]:
    """Time turns on Flower's own simulation, once, since starting it takes more than a minute."""
    rows = []
    plain = PlainSplitLoop(load_benchmark_experiment(1), 1, BATCH)
    steps = -(-IMAGES // BATCH)
    for count in (1, 32):
        command = [sys.executable, "-m", "pudica.simulations.benchmarks.split", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = [json.loads(done.stdout.splitlines()[-1])]
        rival = [1000 * measure_seconds(plain.epoch) / steps]
        what = f"a batch on Flower's simulation, {count} per message / a step of the plain loop"
        rows.append(make_ratio_row(what, "ms", None, ours, rival))
    return rows


def main(count: int) -> None:
    """Print milliseconds per batch on Flower's simulation, with ``count`` batches per message."""
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    experiment = load_benchmark_experiment(
        1, "split.front=private", f"split.batches_per_message={count}"
    )
    measured: list[float] = []
    server = ServerApp()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        config = build_run_config(experiment, directory, "flower")

        @server.main()
        def turns(grid: Grid, context: Context) -> None:
            context.run_config = dict(config)
            torch.set_num_threads(1)
            training = prepare_training(experiment, grid, directory)
            arrays = take_turns(training, training.new_arrays(), 1)
            before = training.examples
            took = measure_seconds(lambda: take_turns(training, arrays, FLOWER_TURNS - 1))
            measured.append(1000 * took * BATCH / (training.examples - before))

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, app, 1, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
