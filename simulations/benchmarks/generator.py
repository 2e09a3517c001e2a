"""One ``joint`` generator epoch, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from flwr.serverapp import Grid
from torch import nn
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.clients.app import app
from pudica.clients.data import ImageSet, Splits
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import numpy_generator, torch_generator
from pudica.simulations.benchmarks.measure import Row, make_ratio_row, measure_seconds
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.simulations.engines.ray import RayGrid
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment
from pudica.strategies.themis.experiment import ThemisExperiment
from pudica.strategies.themis.joining import join
from pudica.strategies.themis.local import train_models
from pudica.strategies.themis.organiser import Organiser
from pudica.strategies.themis.strategy import Themis

IMAGES = 12_000
SETTINGS = [
    f"data.limit={IMAGES}",
    "training.epochs=1",
    "themis.epochs=1",
    "themis.clip=null",
    "themis.examiner=null",
]


def load_benchmark_experiment() -> ThemisExperiment:
    """Load themis-mnist with 12,000 training images."""
    return cast(ThemisExperiment, load_experiment("themis-mnist", SETTINGS))


class PlainGeneratorLoop:
    """The rival: a loop in one process, without Flower.

    Parameters
    ----------
    experiment : ThemisExperiment
    threads : int
        PyTorch threads it may use.
    frozen : bool
        Whether to use the models frozen, as participants do (:func:`pudica.models.freeze`), instead
        of as PyTorch makes them, in its default layout and with batch norm.
    """

    def __init__(self, experiment: ThemisExperiment, threads: int, frozen: bool = False) -> None:
        data = experiment.load_data()
        self.images: ImageSet = data.train
        self.settings = experiment.themis
        self.threads = threads
        self.models = [self._build_model(p.model, data, frozen) for p in experiment.participants]
        randomness = torch_generator(0, "generator")
        self.generator = NoiseGenerator.untrained(data.shape, self.settings.M, randomness)
        parameters = [self.generator.mu, self.generator.rho]
        self.optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate)

    @staticmethod
    def _build_model(name: str, data: Splits, frozen: bool) -> nn.Module:
        model = models.build_for(name, data.shape, num_classes=data.num_classes)
        if frozen:
            return models.freeze(name, model)
        return model.requires_grad_(False).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]

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
def prepare_stage(
    experiment: ThemisExperiment, grid: Grid, directory: Path
) -> Iterator[tuple[Organiser, Themis]]:
    """Let participants join and train; yield organiser and strategy, whose rounds are timed."""
    recorder = Recorder(directory, experiment, "benchmark")
    organiser = Organiser(Cohort.on(grid, experiment.client, recorder), experiment)
    join(organiser)
    train_models(organiser)
    strategy = organiser.strategy("main", experiment.themis)
    strategy.load_arrays(strategy.initial_arrays())
    yield organiser, strategy
    recorder.close("done")


def measure_rows(repeats: int) -> list[Row]:
    """Measure on both engines; Ray must be connected."""
    experiment = load_benchmark_experiment()
    count = len(experiment.participants)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "inprocess", Path(folder) / "ray"
        config = build_run_config(experiment, here, "benchmark")
        build_server_context(config)
        with prepare_stage(experiment, InProcessGrid(app, count, config), here) as prepared:
            in_process = _compare_epochs(
                "in process", *prepared, threads=1, bar=1.10, repeats=repeats
            )
        grid = RayGrid(app, count, build_run_config(experiment, there, "benchmark"), workers=2)
        with prepare_stage(experiment, grid, there) as prepared:
            on_ray = _compare_epochs(
                "Ray, 2 workers", *prepared, threads=2, bar=1.00, repeats=repeats
            )
        grid.stop()
    return in_process + on_ray


def _compare_epochs(
    engine: str,
    organiser: Organiser,
    strategy: Themis,
    threads: int,
    bar: float,
    repeats: int,
) -> list[Row]:
    """Time epochs, alternating with both rivals."""
    experiment = organiser.experiment
    plain, frozen = (
        PlainGeneratorLoop(experiment, threads),
        PlainGeneratorLoop(experiment, threads, frozen=True),
    )
    epochs = [plain.epoch, frozen.epoch, lambda: strategy.run_round(strategy.arrays())]
    for epoch in epochs:
        epoch()
    times = [[measure_seconds(epoch) for epoch in epochs] for _ in range(repeats)]
    of_plain, of_frozen, ours = (list(each) for each in zip(*times, strict=True))
    what = f"MNIST joint epoch, {engine} / plain loop, {threads} thread{'s' * (threads > 1)}"
    return [
        make_ratio_row(what, "s", bar, ours, of_plain),
        make_ratio_row(f"{what}, frozen models", "s", None, ours, of_frozen),
    ]
