"""Training across the cut, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.clients import shields
from pudica.clients.app import app
from pudica.models.randomness import SecretGenerator, numpy_generator
from pudica.simulations.benchmarks.engines import run_module, start_ray_grid
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds, use_threads
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.session import Session
from pudica.strategies.split.strategy import SplitLearning
from pudica.strategies.split.system import Case

Settings = dict[str, Any]

IMAGES = 12_000
FLOWER_TURNS = 6
BATCH, FEATURES = 64, (80, 4, 4)
SHIELDS: dict[str, Settings] = {
    "laplace": {"name": "batch-norm-laplace", "epsilon": 5},
    "gaussian": {"name": "norm-gaussian", "epsilon": 5},
    "clip-gaussian": {"name": "clip-gaussian", "epsilon": 5},
    "clip-laplace": {"name": "clip-laplace", "epsilon": 5},
}
RANDOMNESS: dict[str, Callable[[], object]] = {
    "seeded": lambda: numpy_generator(0, "noise"),
    "secret": lambda: SecretGenerator(bytes(32), bytes(4 * BATCH * 1280)),
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


def prepare_inprocess(directory: Path) -> SplitLearning:
    """Let a single device join, in process."""
    experiment = load_benchmark_experiment(1, "split.front=private")
    config = build_run_config(experiment, directory, "benchmark")
    build_server_context(config)
    return prepare_training(experiment, InProcessGrid(app, 1, config), directory)


def _measure_inprocess(repeats: int) -> Samples:
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        training = prepare_inprocess(Path(folder))
        plain = PlainSplitLoop(load_benchmark_experiment(1), 1, BATCH)
        return _time_epochs(training, plain, repeats)


def _measure_ray(front: str, repeats: int) -> Samples:
    experiment = load_benchmark_experiment(4, f"split.front={front}", "split.threads=2")
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        config = build_run_config(experiment, Path(folder), "benchmark")
        build_server_context(config)
        with start_ray_grid(app, 4, config) as grid:
            training = prepare_training(experiment, grid, Path(folder))
            return _time_epochs(training, PlainSplitLoop(experiment, 2, 4 * BATCH), repeats)


def _time_epochs(training: SplitLearning, plain: PlainSplitLoop, repeats: int) -> Samples:
    arrays = training.new_arrays()
    epochs = [plain.epoch, lambda: training.run_round(arrays)]
    for epoch in epochs:
        epoch()
    times = [[measure_seconds(epoch) for epoch in epochs] for _ in range(repeats)]
    of_plain, ours = zip(*times, strict=True)
    return Samples(ours, of_plain)


def _measure_traffic(_: int) -> Samples:
    """Compare bytes on the wire with those of activations, labels and gradients alone."""
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        training = prepare_inprocess(Path(folder))
        arrays = take_turns(training, training.new_arrays(), 1)  # so that a gradient is waiting
        before = _count_bytes(training)
        take_turns(training, arrays, 1)
        values = 4 * BATCH * 1280
        return Samples([_count_bytes(training) - before], [2 * values + 4 * BATCH])


def _count_bytes(training: SplitLearning) -> int:
    return sum(map(sum, training.cohort.traffic.values()))


@cache
def measure_steps(repeats: int) -> list[float]:
    """Return the milliseconds of a step of the plain loop, in epochs one after the other."""
    with use_threads(1):
        plain = PlainSplitLoop(load_benchmark_experiment(1), 1, BATCH)
        steps = -(-IMAGES // BATCH)
        return [1000 * measure_seconds(plain.epoch) / steps for _ in range(repeats)]


def _measure_shield(settings: Settings, noise: str, repeats: int) -> Samples:
    """Time forward and backward through a shield, against a step of the plain loop."""
    shield = shields.build(shields.parse_config(settings), FEATURES, BATCH)
    rival = measure_steps(repeats)
    with use_threads(1):
        return Samples([_time_shield(shield, RANDOMNESS[noise]) for _ in range(repeats)], rival)


def _time_shield(shield: shields.Shield, source: Callable[[], object]) -> float:
    x = torch.rand(BATCH, *FEATURES, requires_grad=True)

    def run_once() -> None:
        shield.protect(x, source())[0].sum().backward()  # type: ignore[arg-type,no-untyped-call]

    run_once()
    return 1000 * median(measure_seconds(run_once) for _ in range(20))


def _measure_flower(count: int, _: int) -> Samples:
    """Time turns on Flower's own simulation, once, since starting it takes more than a minute."""
    return Samples([run_module(__name__, count)], measure_steps(1))


def _build_shield_benchmarks() -> Iterator[Benchmark]:
    for noise in RANDOMNESS:
        for name, settings in SHIELDS.items():
            yield Benchmark(
                f"split-{name}-{noise}",
                f"shield {settings['name']} at 64x1280, {noise} noise / a step of the plain loop",
                # Exact noise on integers takes longer; it is only used for a guarantee.
                "ms",
                None if name.startswith("clip") else 0.15,
                partial(_measure_shield, settings, noise),
                data=("mnist",),
                quick=True,
            )


BENCHMARKS = [
    Benchmark(
        "split-inprocess",
        "MNIST epoch across the cut, 1 device, in process / plain loop, 1 thread",
        "s",
        1.15,
        _measure_inprocess,
        data=("mnist",),
    ),
    Benchmark(
        "split-traffic",
        "bytes on the wire of a turn across the cut / of its payload",
        "bytes",
        1.02,
        _measure_traffic,
        data=("mnist",),
        quick=True,
    ),
    *(
        Benchmark(
            f"split-ray-{front}",
            f"MNIST epoch across the cut, 4 devices, {front} front, Ray, 2 workers / plain loop, "
            "2 threads",
            "s",
            bar,
            partial(_measure_ray, front),
            data=("mnist",),
            ray=True,
        )
        for front, bar in [("average", 1.25), ("private", None)]
    ),
    *(
        Benchmark(
            f"split-flower-{count}",
            f"a batch on Flower's simulation, {count} per message / a step of the plain loop",
            "ms",
            None,
            partial(_measure_flower, count),
            data=("mnist",),
        )
        for count in (1, 32)
    ),
    *_build_shield_benchmarks(),
]


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
