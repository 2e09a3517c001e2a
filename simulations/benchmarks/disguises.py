"""Disguising images: in memory against a memcpy, on disk against decoding and encoding alone."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import cast

import torch

from pudica.clients.data import DataConfig, load
from pudica.clients.data.disguised import DisguiseRequest, disguise_dataset
from pudica.clients.data.registry import find_source, lookup
from pudica.clients.data.source import DataLocation, data_root
from pudica.clients.shields.disguises import Key, KeyedDisguise, Span
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds, use_threads

DISGUISE = "MAT(256)+MMT(10)"
SETS = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class IdentityDisguise:
    """Stands in for a disguise and leaves images unchanged."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.span = Span()

    def protect(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images unchanged."""
        return images


def _measure_in_memory(name: str, repeats: int) -> Samples:
    train = load(DataConfig(name=name, split="train-test"), seed=0).train
    plain = train.plain_images(slice(None))
    disguise = KeyedDisguise(Key.from_seed(DISGUISE, SETS[name], seed=0))
    with use_threads(os.cpu_count() or 1):
        disguised = disguise.protect(plain).numpy()
        ours: list[float] = []
        rival: list[float] = []
        for _ in range(repeats):
            ours.append(1000 * measure_seconds(lambda: disguise.protect(plain)))
            rival.append(1000 * measure_seconds(disguised.copy))
    return Samples(ours, rival)


def _measure_on_disk(repeats: int) -> Samples:
    """Measure disguising CIFAR-10's parquet files."""
    source = find_source(lookup("cifar10"), DataLocation(data_root()), download=False)
    own = KeyedDisguise(Key.from_seed(DISGUISE, SETS["cifar10"], seed=0))
    ours: list[float] = []
    rival: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for name, times, disguise in (
                ("ours", ours, own),
                ("rival", rival, cast(KeyedDisguise, IdentityDisguise(own.key))),
            ):
                request = DisguiseRequest(source, "benchmark", disguise, [], None, None)
                out = Path(folder) / f"{name}-{number}"
                work = partial(disguise_dataset, request, out, _ignore_progress)
                times.append(measure_seconds(work))
    return Samples(ours, rival)


def _ignore_progress(done: int, total: int) -> None:
    """Ignore progress."""


BENCHMARKS = [
    Benchmark(
        "disguises-memory-mnist",
        f"disguising 60,000 images of MNIST by {DISGUISE} / a memcpy of them",
        "ms",
        4.0,
        partial(_measure_in_memory, "mnist"),
        data=("mnist",),
        quick=True,
    ),
    Benchmark(
        "disguises-memory-cifar10",
        f"disguising 50,000 images of CIFAR-10 by {DISGUISE} / a memcpy of them",
        "ms",
        4.0,
        partial(_measure_in_memory, "cifar10"),
        data=("cifar10",),
        quick=True,
    ),
    Benchmark(
        "disguises-disk-cifar10",
        f"CIFAR-10 on disk by {DISGUISE} / decoding and encoding alone",
        "s",
        1.2,
        _measure_on_disk,
        data=("cifar10",),
    ),
]
