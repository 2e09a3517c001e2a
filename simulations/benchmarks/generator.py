"""One ``joint`` generator epoch, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.serverapp import Grid
from torch.nn.functional import cross_entropy

import models
from clients.app import app
from clients.data import ImageSet
from models.generator import NoiseGenerator
from models.randomness import numpy_generator, torch_generator
from simulations.benchmarks.measure import Row, compared, seconds
from simulations.engines.inprocess import InProcessGrid
from simulations.engines.local import run_config, server_context
from simulations.engines.ray import RayGrid
from strategies.experiment import Experiment, load_experiment
from strategies.recorder import Recorder
from strategies.themis.generator import GeneratorStage
from strategies.themis.joining import join
from strategies.themis.local import train_models
from strategies.themis.organiser import Organiser

IMAGES = 12_000
SETTINGS = [
    f"data.limit={IMAGES}",
    "training.epochs=1",
    "themis.epochs=1",
    "themis.clip=null",
    "themis.examiner=null",
]


def experiment() -> Experiment:
    """Return themis-mnist on 12,000 training images."""
    return load_experiment("themis-mnist", SETTINGS)


class Plain:
    """The rival: one process, one loop, nothing of Flower.

    Parameters
    ----------
    experiment : Experiment
    threads : int
        PyTorch threads it may use.
    """

    def __init__(self, experiment: Experiment, threads: int) -> None:
        data = experiment.load_data()
        self.images: ImageSet = data.train
        self.settings = experiment.themis
        self.threads = threads
        self.models = [
            models.build(
                p.model,
                num_classes=data.num_classes,
                channels=data.shape[0],
                image_size=data.shape[1],
            )
            .requires_grad_(False)
            .eval()
            for p in experiment.participants
        ]
        randomness = torch_generator(0, "generator")
        self.generator = NoiseGenerator.initial(data.shape, self.settings.M, randomness)
        parameters = [self.generator.mu, self.generator.rho]
        self.optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate)

    def epoch(self) -> None:
        """Run one epoch of Eq. (2)."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        order = numpy_generator(0, "order").permutation(len(self.images))
        noise = torch_generator(0, "noise")
        for start in range(0, len(order), self.settings.batch_size):
            x, y = self.images.batch(order[start : start + self.settings.batch_size])
            noisy = self.generator(x, torch.randn(x.shape, generator=noise))
            losses = [cross_entropy(model(noisy), y) for model in self.models]
            weight = self.settings.weight / len(self.models)
            loss = self.generator.penalty() + weight * torch.stack(losses).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        torch.set_num_threads(before)


@contextmanager
def ready(experiment: Experiment, grid: Grid, directory: Path) -> Iterator[GeneratorStage]:
    """Join and train the participants; yield the stage whose epoch is timed."""
    recorder = Recorder(directory, experiment, "benchmark")
    organiser = Organiser(grid, experiment, recorder)
    join(organiser)
    train_models(organiser)
    yield GeneratorStage(organiser, "main", experiment.themis)
    recorder.close("done")


def rows(repeats: int) -> list[Row]:
    """Measure both rows; Ray must be connected. The rival runs right before each of ours."""
    wanted = experiment()
    count = len(wanted.participants)
    one, two = Plain(wanted, 1), Plain(wanted, 2)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "inprocess", Path(folder) / "ray"
        config = run_config(wanted, here, "benchmark")
        server_context(config)
        with ready(wanted, InProcessGrid(app, count, config), here) as stage:
            in_process = _paired(stage, one, repeats)
        grid = RayGrid(app, count, run_config(wanted, there, "benchmark"), workers=2)
        with ready(wanted, grid, there) as stage:
            on_ray = _paired(stage, two, repeats)
        grid.stop()
    what = f"joint generator epoch, MNIST {IMAGES:,} images, {count} participants"
    return [
        compared(f"{what}, in process, against a plain loop (1 thread)", "s", 1.10, *in_process),
        compared(f"{what}, Ray, 2 workers, against it (2 threads)", "s", 1.00, *on_ray),
    ]


def _paired(stage: GeneratorStage, rival: Plain, repeats: int) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    stage.run_epoch(0)
    rival.epoch()
    for _ in range(repeats):
        theirs.append(seconds(rival.epoch))
        ours.append(seconds(lambda: stage.run_epoch(0)))
    return ours, theirs
