"""DP-SGD at the owners of DLMT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from split_helpers import Interrupted, measured, model_of, run, same
from torch.nn.functional import cross_entropy

import pudica.strategies.core.recorder
from pudica import models
from pudica.analysis.privacy import claims, privacy, verdict
from pudica.clients import protocol
from pudica.clients.data import DataConfig, load
from pudica.clients.dlmt.private_training import PrivateTraining
from pudica.clients.shields.dp_sgd import DpSgdConfig, calibrate_noise, compute_epsilon
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.training import TrainingConfig
from pudica.strategies.dlmt.experiment import DlmtExperiment
from pudica.strategies.loading import load_experiment

TINY = [
    "data.limit=90",
    "dlmt.owners=2",
    "dlmt.cases={}",
    "dlmt.model=cnn-tiny",
    "dlmt.training={epochs: 3, batch_size: 16, learning_rate: 0.1}",
    "dlmt.measures=false",
    "dlmt.train=federated",
]
DP = "dlmt.dp={epsilon: 8, delta: 1e-5, clip: 1.0}"


def tiny(*overrides: str) -> DlmtExperiment:
    experiment = load_experiment("dlmt-digits", [*TINY, *overrides])
    assert isinstance(experiment, DlmtExperiment)
    return experiment


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_a_step_without_noise_is_that_of_a_loop_over_examples(clip: float) -> None:
    pytest.importorskip("opacus")
    images = load(DataConfig(name="digits", limit=60), 0).train
    config = TrainingConfig(batch_size=len(images), momentum=0.0, learning_rate=0.1, gamma=1.0)
    model, naive = (
        models.build("cnn-tiny", num_classes=10, channels=1, image_size=8, seed=1) for _ in range(2)
    )
    training = PrivateTraining(
        model,
        config,
        0,
        Compute(ComputeConfig(device="cpu")),
        dp=DpSgdConfig(epsilon=1, clip=clip),
        multiplier=0.0,
        draw=lambda epoch: np.random.default_rng(epoch),
    )
    training.train_epoch(images)
    x, y = images.batch(np.arange(len(images)))
    total = [torch.zeros_like(p) for p in naive.parameters()]
    for one, label in zip(x, y, strict=True):
        loss = cross_entropy(naive(one[None]), label[None])
        gradients = torch.autograd.grad(loss, list(naive.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for place, gradient in zip(total, gradients, strict=True):
            place += gradient * min(1.0, clip / float(norm))
    for found, before, change in zip(model.parameters(), naive.parameters(), total, strict=True):
        wanted = before - 0.1 * change / len(x)
        # Rounding may decide which of two equal pixels pooling takes.
        assert (found - wanted).norm() <= 1e-3 * (wanted - before).norm() + 1e-7
    assert any(getattr(layer, "inplace", False) for layer in model.modules())


def test_noise_is_no_larger_than_the_budget_needs() -> None:
    multiplier = calibrate_noise(8, 1e-5, 0.1, 60)
    assert 7.9 < compute_epsilon(multiplier, 0.1, 60, 1e-5) <= 8
    assert compute_epsilon(multiplier, 0.1, 60, 1e-5, "replace-one") > 8


@pytest.mark.parametrize("noise", ["seeded", "secret"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    pytest.importorskip("opacus")
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", 0.0)
    settings = (DP, f"dlmt.dp.noise={noise}", "dlmt.keep_momentum=true")
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "stopped", stop=(protocol.ROUND, 4))
    run(tiny(*settings), tmp_path / "stopped")
    for name in ("whole", "again"):
        run(tiny(*settings), tmp_path / name)
    wholes = model_of(tmp_path / "whole"), model_of(tmp_path / "again")
    assert same(*wholes) == (noise == "seeded")
    if noise == "seeded":
        assert same(wholes[0], model_of(tmp_path / "stopped"))
    assert not measured(tmp_path / "whole", stage="training", metric="loss")


def test_the_ledger_claims_it_and_says_that_nothing_holds(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    run(tiny(DP), tmp_path / "run")
    claim = claims(tmp_path / "run")["main"]
    assert (claim.epsilon, claim.delta, claim.relation) == (8, 1e-5, "add-or-remove-one")
    table = privacy(tmp_path / "run").set_index("mechanism")
    assert table.loc["dp-sgd", "claimed"] == "ε = 8 (δ = 1e-05) for one record (add-or-remove-one)"
    held = verdict(tmp_path / "run")["main"]
    assert held.epsilon is None
    assert any("last bits" in reason for reason in held.reasons)
    assert any("statistics of channels" in reason for reason in held.reasons)


def test_owners_that_give_images_away_are_refused() -> None:
    with pytest.raises(RequestError, match="allowed with train: federated"):
        tiny(DP, "dlmt.train=central")


def test_batch_norm_is_refused_and_models_without_it_are_named() -> None:
    pytest.importorskip("opacus")
    experiment = tiny(DP, "dlmt.model=cnn-small")
    data = load(experiment.data, 0)
    with pytest.raises(RequestError, match="cnn-tiny"):
        experiment.check_models(data)


def test_without_opacus_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.validators", None)
    experiment = tiny(DP)
    data = load(experiment.data, 0)
    with pytest.raises(RequestError, match=r"pip install 'pudica\[opacus\]'"):
        experiment.check_models(data)
