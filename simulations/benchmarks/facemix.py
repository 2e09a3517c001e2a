"""FaceMix: mixing against a copy, training and serving against the model without it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pudica import models
from pudica.clients.app import app
from pudica.clients.shields import build, parse_config
from pudica.clients.shields.stages import build_staged
from pudica.models.attributes import LOGITS, attribute_loss
from pudica.models.compute import Compute
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds, use_threads
from pudica.simulations.cuts import build_stage_table
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.facemix.experiment import FacemixExperiment
from pudica.strategies.facemix.serving import Serving
from pudica.strategies.facemix.session import Session
from pudica.strategies.loading import load_experiment

STEM = (64, 64, 64)
"""Output shape of the stem of the zoo's ResNet-18 for an image of 64x64 pixels."""
MAPS, BATCH, ATTRIBUTES = 256, 64, 11
FACES = (3, 64, 64)
STEPS = 6
MODEL = "torchvision:resnet18"
STAGES = ("maxpool", "flatten")


def _measure_mixing(repeats: int) -> Samples:
    shield = build(parse_config({"name": "mixing"}), STEM, MAPS)
    maps = torch.from_numpy(
        np.random.default_rng(0).standard_normal((MAPS, *STEM), dtype=np.float32)
    )

    def mix_and_unmix() -> None:
        sent, key = shield.protect(maps, np.random.default_rng(0))
        shield.restore(sent, key)

    with use_threads(os.cpu_count() or 1):
        return _time_pairs(repeats, mix_and_unmix, maps.clone)


@cache
def compute_shares() -> dict[str, float]:
    """Return the edge's share of multiplications in percent, by the last layer it has."""
    table = build_stage_table(MODEL, (3, 218, 178), LOGITS * 40, STAGES[1])
    return dict(zip(table["pre"], map(float, table["share %"]), strict=True))


def _get_share(pre: str, _: int) -> Samples:
    """Return a share, to compare with the paper; nothing is timed."""
    return Samples([compute_shares()[pre]])


def _measure_training_steps(repeats: int) -> Samples:
    plain = models.build(MODEL, num_classes=2 * ATTRIBUTES, channels=3, image_size=64)
    shield = parse_config({"name": "mixing"})
    mixed = build_staged(MODEL, ATTRIBUTES, FACES, STAGES, shield, BATCH)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((BATCH, *FACES), dtype=np.float32))
    truth = torch.from_numpy(rng.integers(0, 2, (BATCH, ATTRIBUTES)))
    mixed.randomness = rng

    def steps(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters())

        def run_steps() -> None:
            for _ in range(STEPS):
                optimizer.zero_grad()
                attribute_loss(model(x), truth).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        return run_steps

    with use_threads(1):
        return _time_pairs(repeats, steps(mixed), steps(plain))


def _measure_serving(repeats: int) -> Samples:
    overrides = ["data.limit=2000", "facemix.cases={}", "facemix.report=false"]
    experiment = load_experiment("facemix-utkface", overrides)
    assert isinstance(experiment, FacemixExperiment)
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        # A new session for each run, since answered requests are not sent again.
        fresh = iter([_join_session(experiment, Path(folder) / f"{n}") for n in range(repeats + 2)])
        session = next(fresh)
        images = session.data.test
        model = session.model.eval()
        model.randomness = None
        compute = Compute(experiment.client)

        def mixed() -> None:
            serving = Serving(next(fresh).strategy)
            serving.run()
            assert serving.rows >= len(images)

        @torch.no_grad()
        def plain() -> None:
            for size in [len(images) // 2, len(images) - len(images) // 2]:
                for start in range(0, size, experiment.facemix.request):
                    x, _ = images.batch(slice(start, start + experiment.facemix.request))
                    compute.forward(model, x).argmax(1)

        return _time_pairs(repeats, mixed, plain)


def _join_session(experiment: FacemixExperiment, directory: Path) -> Session:
    """Return a session whose edges have joined."""
    config = build_run_config(experiment, directory, "benchmark")
    build_server_context(config)
    grid = InProcessGrid(app, experiment.facemix.edges, config)
    recorder = Recorder(directory, experiment, "benchmark")
    cohort = Cohort.on(grid, experiment.client, recorder)
    cohort.nodes = gather(cohort, experiment.names(), 1)
    session = Session(cohort, experiment, "main", experiment.facemix, experiment.load_data())
    session.join()
    return session


def _time_pairs(repeats: int, ours: Callable[[], object], rival: Callable[[], object]) -> Samples:
    """Return the milliseconds of two functions, in turn, after a warm-up of each."""
    ours()
    rival()
    pairs = [(1000 * measure_seconds(ours), 1000 * measure_seconds(rival)) for _ in range(repeats)]
    return Samples(*zip(*pairs, strict=True))


BENCHMARKS = [
    Benchmark(
        "facemix-mixing",
        f"mixing and unmixing {MAPS} feature maps of a stem, groups of 8 / a copy of them",
        "ms",
        3.0,
        _measure_mixing,
        quick=True,
    ),
    Benchmark(
        "facemix-training",
        f"{STEPS} encryption-aware training steps of ResNet-18 on 64 faces / plain steps",
        "ms",
        1.10,
        _measure_training_steps,
    ),
    Benchmark(
        "facemix-serving",
        "serving 500 faces mixed, in process / inference of the whole model",
        "ms",
        1 / 0.85,
        _measure_serving,
        data=("utkface",),
    ),
    *(
        Benchmark(
            f"facemix-share-{blocks}",
            f"the edge's share of ResNet-18's multiplications at 218x178, N_pre = {blocks}",
            "%",
            bar,
            partial(_get_share, pre),
            quick=True,
        )
        for blocks, pre, bar in [(1, "maxpool", 6.5), (2, "layer1.0", 19), (3, "layer1.1", 31)]
    ),
]
