"""Training across the cut, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import cast

import torch
from flwr.serverapp import Grid
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.clients import shields
from pudica.clients.app import app
from pudica.models.randomness import SecretGenerator, numpy_generator
from pudica.simulations.benchmarks.measure import Row, compared, seconds
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import run_config, server_context
from pudica.simulations.engines.ray import RayGrid
from pudica.strategies.core.exchange import Exchanges
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.session import Session
from pudica.strategies.split.system import Case
from pudica.strategies.split.training import Training, Turn

IMAGES = 12_000
FLOWER_TURNS = 6
BATCH, FEATURES = 64, (80, 4, 4)
SHIELDS = {
    "Laplace": {"name": "batch-norm-laplace", "epsilon": 5},
    "Gaussian": {"name": "norm-gaussian", "epsilon": 5},
    "clip and Gaussian": {"name": "clip-gaussian", "epsilon": 5},
    "clip and Laplace": {"name": "clip-laplace", "epsilon": 5},
}


def experiment(devices: int, *further: str) -> SplitExperiment:
    """Return split-laplace-mnist on 12,000 images, without a shield."""
    settings = [
        f"data.limit={IMAGES}",
        f"split.devices={devices}",
        "split.cases={}",
        "split.shield={name: none}",
        *further,
    ]
    return cast(SplitExperiment, load_experiment("split-laplace-mnist", settings))


class Plain:
    """The rival: the whole model in one loop.

    Parameters
    ----------
    experiment : SplitExperiment
    threads : int
        PyTorch threads it may use.
    batch : int
        The union of the devices' batches.
    """

    def __init__(self, experiment: SplitExperiment, threads: int, batch: int) -> None:
        data = experiment.load_data()
        channels, side, _ = data.shape
        self.images = data.train
        self.threads = threads
        self.batch = batch
        self.model = models.build(
            experiment.split.model,
            num_classes=data.num_classes,
            channels=channels,
            image_size=side,
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


def ready(experiment: SplitExperiment, grid: Grid, directory: Path) -> Training:
    """Let the devices join; return the training whose epochs are timed."""
    recorder = Recorder(directory, experiment, "benchmark")
    exchanges = Exchanges(grid, recorder, {})
    exchanges.nodes = gather(exchanges, experiment.names(), 1)
    case = Case(Session(exchanges, experiment, "main", experiment.split))
    return cast(Training, case.prepare())


def rows(repeats: int) -> list[Row]:
    """Measure on both engines; Ray must be connected."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "inprocess", Path(folder) / "ray"
        return [
            *_in_process(here, repeats),
            *_on_ray(there, "average", 1.25, repeats),
            *_on_ray(there, "private", None, repeats),
            *_on_flower(),
            *_shields(repeats),
        ]


def _in_process(directory: Path, repeats: int) -> list[Row]:
    wanted = experiment(1, "split.front=private")
    config = run_config(wanted, directory, "benchmark")
    server_context(config)
    training = ready(wanted, InProcessGrid(app, 1, config), directory)
    what = "MNIST epoch across the cut, 1 device, in process / plain loop, 1 thread"
    row = _against(what, 1.15, training, Plain(wanted, 1, BATCH), repeats)
    return [row, _wire(training)]


def _on_ray(directory: Path, front: str, bar: float | None, repeats: int) -> list[Row]:
    wanted = experiment(4, f"split.front={front}", "split.threads=2")
    config = run_config(wanted, directory / front, "benchmark")
    server_context(config)
    grid = RayGrid(app, 4, config, workers=2)
    try:
        training = ready(wanted, grid, directory / front)
        what = f"the same, 4 devices, {front} front, Ray, 2 workers / plain loop, 2 threads"
        return [_against(what, bar, training, Plain(wanted, 2, 4 * BATCH), repeats)]
    finally:
        grid.stop()


def _against(what: str, bar: float | None, training: Training, plain: Plain, repeats: int) -> Row:
    epochs = [plain.epoch, lambda: training.run_epoch(0)]
    for epoch in epochs:
        epoch()
    times = [[seconds(epoch) for epoch in epochs] for _ in range(repeats)]
    of_plain, ours = (list(each) for each in zip(*times, strict=True))
    return compared(what, "s", bar, ours, of_plain)


def _wire(training: Training) -> Row:
    """Return bytes on the wire over those of activations, labels and gradients themselves."""
    (turn, *_) = training.turns(0)
    exchanges = training.exchanges
    training.take(turn)  # so that a gradient waits
    before = [list(total) for total in exchanges.traffic.values()]
    (following,) = [t for t in training.turns(0) if t.step == turn.step + turn.count]
    training.take(following)
    (sent, received) = (
        after - then for after, then in zip(*exchanges.traffic.values(), before[0], strict=True)
    )
    values = 4 * BATCH * 1280
    payload = 2 * values + 4 * BATCH
    what = "bytes on the wire / of the payload, one turn"
    return compared(what, "bytes", 1.02, [sent + received], [payload])


def _shields(repeats: int) -> list[Row]:
    """Time forward and backward through each shield, against a step of the plain loop."""
    plain = Plain(experiment(1), 1, BATCH)
    steps = -(-IMAGES // BATCH)
    of_step = [1000 * seconds(plain.epoch) / steps for _ in range(repeats)]
    found = []
    for noise, source in RANDOMNESS.items():
        for name, settings in SHIELDS.items():
            shield = shields.build(shields.configured(settings), FEATURES, BATCH)
            ours = [_shield_ms(shield, source) for _ in range(repeats)]
            what = f"shield at 64x1280, {name}, {noise} noise / a step of the plain loop"
            # Exact noise on integers takes longer: only where something is promised.
            bar = None if shield.grid else 0.15
            found.append(compared(what, "ms", bar, ours, of_step))
    return found


def _shield_ms(shield: shields.Shield, source: Callable[[], object]) -> float:
    x = torch.rand(BATCH, *FEATURES, requires_grad=True)

    def once() -> None:
        shield.protect(x, source())[0].sum().backward()  # type: ignore[arg-type,no-untyped-call]

    once()
    return 1000 * median(seconds(once) for _ in range(20))


RANDOMNESS: dict[str, Callable[[], object]] = {
    "seeded": lambda: numpy_generator(0, "noise"),
    "secret": lambda: SecretGenerator(bytes(32), bytes(4 * BATCH * 1280)),
}


def _on_flower() -> list[Row]:
    """Time turns on Flower's own simulation, once: it takes more than a minute to start and end."""
    found = []
    plain = Plain(experiment(1), 1, BATCH)
    steps = -(-IMAGES // BATCH)
    for count in (1, 32):
        command = [sys.executable, "-m", "pudica.simulations.benchmarks.split", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = [json.loads(done.stdout.splitlines()[-1])]
        rival = [1000 * seconds(plain.epoch) / steps]
        what = f"a batch on Flower's simulation, {count} per message / a step of the plain loop"
        found.append(compared(what, "ms", None, ours, rival))
    return found


def taken(training: Training, turns: Sequence[Turn]) -> None:
    """Take some turns."""
    for turn in turns:
        training.take(turn)


def main(count: int) -> None:
    """Print the milliseconds per batch on Flower's simulation, so many batches to a message."""
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    wanted = experiment(1, "split.front=private", f"split.batches_per_message={count}")
    measured: list[float] = []
    server = ServerApp()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        config = run_config(wanted, directory, "flower")

        @server.main()
        def turns(grid: Grid, context: Context) -> None:
            context.run_config = dict(config)
            torch.set_num_threads(1)
            training = ready(wanted, grid, directory)
            several = list(training.turns(0))[:FLOWER_TURNS]
            training.take(several[0])
            timed, sizes = several[1:], training.session.sizes
            took = seconds(lambda: taken(training, timed))
            batches = sum(len(sizes("device-0", turn.step, turn.count)) for turn in timed)
            measured.append(1000 * took / batches)

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, app, 1, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
