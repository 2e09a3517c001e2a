"""The memory that a data set takes in a worker: it is mapped, not copied."""

from __future__ import annotations

from typing import Any

import psutil
import ray

from pudica.clients.data import DataConfig
from pudica.models.randomness import numpy_generator
from pudica.simulations.benchmarks.measure import Benchmark, Samples

SMALL, LARGE = 6_000, 60_000


class DatasetReader:
    """A worker that reads a data set as a participant does."""

    def read(self, config: str) -> int:
        """Read every batch, in random order, and return this process's USS in bytes."""
        from pudica.clients.data import load_once

        data = load_once(config, 0)
        for images in (data.train, data.validation):
            order = numpy_generator(0, "order").permutation(len(images))
            for start in range(0, len(order), 64):
                images.batch(order[start : start + 64])
        return int(psutil.Process().memory_full_info().uss)


def _measure_difference(repeats: int) -> Samples:
    """Measure the difference in USS between a large and a small data set.

    Both workers read the same data set at the same time, as in a run, so they share its pages.
    """
    differences = []
    for _ in range(repeats):
        small, large = (_measure_uss(limit) for limit in (SMALL, LARGE))
        differences.append((large - small) / 1e6)
    return Samples(differences)


def _measure_uss(images: int) -> float:
    """Return the larger USS of two new workers with this many training and validation images."""
    config = DataConfig(name="mnist", split="own", limit=images * 4 // 5).model_dump_json()
    actor: Any = ray.remote(num_cpus=1)(DatasetReader)
    workers = [actor.remote() for _ in range(2)]
    try:
        return float(max(ray.get([worker.read.remote(config) for worker in workers])))
    finally:
        for worker in workers:
            ray.kill(worker)


BENCHMARKS = [
    Benchmark(
        "memory-worker",
        "USS of a worker with 60,000 MNIST images over one with 6,000",
        "MB",
        20.0,
        _measure_difference,
        data=("mnist",),
        ray=True,
        quick=True,
    )
]
