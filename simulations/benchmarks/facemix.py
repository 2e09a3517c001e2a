"""FaceMix: mixing against a copy, training and serving against the model without it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
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
from pudica.simulations.benchmarks.measure import (
    Row,
    make_ratio_row,
    make_value_row,
    measure_seconds,
    use_threads,
)
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


def measure_rows(repeats: int) -> list[Row]:
    """Measure mixing, training and serving; UTKFace must be available."""
    with use_threads(os.cpu_count() or 1):
        rows = [_measure_mixing(repeats)]
    with use_threads(1):
        return [
            *rows,
            _measure_training_steps(repeats),
            _measure_serving(repeats),
            *_compute_shares(),
        ]


def _measure_mixing(repeats: int) -> Row:
    shield = build(parse_config({"name": "mixing"}), STEM, MAPS)
    maps = torch.from_numpy(
        np.random.default_rng(0).standard_normal((MAPS, *STEM), dtype=np.float32)
    )

    def mix_and_unmix() -> None:
        sent, key = shield.protect(maps, np.random.default_rng(0))
        shield.restore(sent, key)

    what = f"mixing and unmixing {MAPS} feature maps of a stem, groups of 8 / a copy of them"
    return _time_pairs(what, 3.0, repeats, mix_and_unmix, maps.clone)


def _compute_shares() -> list[Row]:
    """Return the edge's share of multiplications, to compare with the paper; nothing is timed."""
    table = build_stage_table(MODEL, (3, 218, 178), LOGITS * 40, STAGES[1]).set_index("pre")
    what = "the edge's share of the multiplications of ResNet-18 at 218x178, N_pre ="
    return [
        make_value_row(f"{what} {blocks}", "%", bar, [float(table["share %"][pre])])
        for blocks, pre, bar in [(1, "maxpool", 6.5), (2, "layer1.0", 19), (3, "layer1.1", 31)]
    ]


def _measure_training_steps(repeats: int) -> Row:
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

    what = f"{STEPS} encryption-aware training steps of ResNet-18 on 64 faces / plain steps"
    return _time_pairs(what, 1.10, repeats, steps(mixed), steps(plain))


def _measure_serving(repeats: int) -> Row:
    overrides = ["data.limit=2000", "facemix.cases={}", "facemix.report=false"]
    experiment = load_experiment("facemix-utkface", overrides)
    assert isinstance(experiment, FacemixExperiment)
    with tempfile.TemporaryDirectory() as folder:
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

        what = f"serving {len(images)} faces mixed, in process / inference of the whole model"
        return _time_pairs(what, 1 / 0.85, repeats, mixed, plain)


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


def _time_pairs(
    what: str,
    bar: float,
    repeats: int,
    ours: Callable[[], object],
    rival: Callable[[], object],
) -> Row:
    """Time two functions, each after a warm-up, and return their row."""
    ours()
    rival()
    pairs = [(1000 * measure_seconds(ours), 1000 * measure_seconds(rival)) for _ in range(repeats)]
    return make_ratio_row(what, "ms", bar, *zip(*pairs, strict=True))
