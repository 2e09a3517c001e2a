"""One ``joint`` generator epoch, against a plain PyTorch loop of the same mathematics."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from flwr.serverapp import Grid
from torch import nn
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.clients.app import app
from pudica.clients.data import ImageSet, Splits
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import numpy_generator, torch_generator
from pudica.simulations.benchmarks.engines import start_ray_grid
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds, use_threads
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
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
def prepare_stage(experiment: ThemisExperiment, grid: Grid, directory: Path) -> Iterator[Themis]:
    """Let participants join and train; yield the strategy whose rounds are timed."""
    recorder = Recorder(directory, experiment, "benchmark")
    organiser = Organiser(Cohort.on(grid, experiment.client, recorder), experiment)
    join(organiser)
    train_models(organiser)
    strategy = organiser.strategy("main", experiment.themis)
    strategy.load_arrays(strategy.initial_arrays())
    yield strategy
    recorder.close("done")


class EpochTimes(NamedTuple):
    """Seconds of epochs of both rivals and of ours, in turn."""

    plain: list[float]
    frozen: list[float]
    ours: list[float]


@cache
def measure_inprocess(repeats: int) -> EpochTimes:
    """Time epochs in process, and those of loops with one thread."""
    experiment = load_benchmark_experiment()
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        config = build_run_config(experiment, Path(folder), "benchmark")
        build_server_context(config)
        grid = InProcessGrid(app, len(experiment.participants), config)
        return _time_epochs(experiment, grid, Path(folder), threads=1, repeats=repeats)


@cache
def measure_ray(repeats: int) -> EpochTimes:
    """Time epochs on Ray, which must be connected, and those of loops with two threads."""
    experiment = load_benchmark_experiment()
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        config = build_run_config(experiment, Path(folder), "benchmark")
        build_server_context(config)
        with start_ray_grid(app, len(experiment.participants), config) as grid:
            return _time_epochs(experiment, grid, Path(folder), threads=2, repeats=repeats)


def _time_epochs(
    experiment: ThemisExperiment, grid: Grid, directory: Path, threads: int, repeats: int
) -> EpochTimes:
    with prepare_stage(experiment, grid, directory) as strategy:
        plain, frozen = (
            PlainGeneratorLoop(experiment, threads),
            PlainGeneratorLoop(experiment, threads, frozen=True),
        )
        epochs = [plain.epoch, frozen.epoch, lambda: strategy.run_round(strategy.arrays())]
        for epoch in epochs:
            epoch()
        times = [[measure_seconds(epoch) for epoch in epochs] for _ in range(repeats)]
    return EpochTimes(*(list(each) for each in zip(*times, strict=True)))


def _compare_with_plain(measure: Callable[[int], EpochTimes], repeats: int) -> Samples:
    times = measure(repeats)
    return Samples(times.ours, times.plain)


def _compare_with_frozen(measure: Callable[[int], EpochTimes], repeats: int) -> Samples:
    times = measure(repeats)
    return Samples(times.ours, times.frozen)


BENCHMARKS = [
    Benchmark(
        "generator-inprocess",
        "MNIST joint epoch, in process / plain loop, 1 thread",
        "s",
        1.10,
        partial(_compare_with_plain, measure_inprocess),
        data=("mnist",),
    ),
    Benchmark(
        "generator-inprocess-frozen",
        "MNIST joint epoch, in process / plain loop over frozen models, 1 thread",
        "s",
        None,
        partial(_compare_with_frozen, measure_inprocess),
        data=("mnist",),
    ),
    Benchmark(
        "generator-ray",
        "MNIST joint epoch, Ray, 2 workers / plain loop, 2 threads",
        "s",
        1.00,
        partial(_compare_with_plain, measure_ray),
        data=("mnist",),
        ray=True,
    ),
    Benchmark(
        "generator-ray-frozen",
        "MNIST joint epoch, Ray, 2 workers / plain loop over frozen models, 2 threads",
        "s",
        None,
        partial(_compare_with_frozen, measure_ray),
        data=("mnist",),
        ray=True,
    ),
]
