"""Membership inference: it finds what is known by heart, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pudica.analysis.attacks import Effort, attacks
from pudica.analysis.attacks.membership import (
    FALSE_ALARMS,
    LEAST,
    MembershipInference,
    compute_confidence,
    find_hits,
    measure_scores,
    memorise,
    score,
    train_shadows,
)
from pudica.analysis.runs import Run, open_run
from pudica.analysis.views.models import (
    ModelTarget,
    ModelView,
    NoModel,
    compute_logits,
    dlmt_model_target,
    load_run_data,
)
from pudica.analysis.views.split_models import SplitRecipe, split_model_target
from pudica.clients.app import app as client_app
from pudica.models.compute import Compute, ComputeConfig
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.model import calibrate_shield

TRAIN, TEST = 200, 500
EFFORT = Effort(epochs=4, images=256, requests=1, seed=0)
SPLIT = {
    "devices": 3,
    "model": "cnn-tiny",
    "shield": {"name": "none"},
    "batch_size": 16,
    "epochs": 4,
    "optimizer": {"learning_rate": 0.1, "momentum": 0.9},
}


def run(directory: Path, name: str, *settings: str) -> Run:
    """Run an experiment in this process."""
    experiment = load_experiment(name, settings)
    config = build_run_config(experiment, directory, "inprocess")
    grid = InProcessGrid(client_app, len(experiment.names()), config)
    server_app(grid, build_server_context(config))
    return open_run(directory)


def write_digits(folder: Path, wrong: float) -> None:
    """Write few training images and many others; a share has a class that was drawn."""
    draws, digits = np.random.default_rng(0), load_digits()
    for place, row in enumerate(draws.permutation(len(digits.images))[: TRAIN + TEST]):
        label = draws.integers(10) if draws.random() < wrong else digits.target[row]
        own = folder / ("train" if place < TRAIN else "test") / str(label)
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(own / f"{place}.png")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> ModelTarget:
    """Return the model of a run that learns few images by heart, also those of a wrong class."""
    place = tmp_path_factory.mktemp("membership")
    write_digits(place / "digits", wrong=0.5)
    own = ["devices=1", "model=cnn-tiny", "epochs=40", "validate_every=0", "classify=[edge]"]
    split = [*own, "shield={name: none}", "optimizer={learning_rate: 0.1, momentum: 0.9}"]
    data = ["data.name=image-folder", f"data.path={place / 'digits'}"]
    done = run(place / "run", "split-digits", *data, *(f"split.{each}" for each in split))
    found = split_model_target(done, "main", EFFORT.images, 0)
    assert isinstance(found, ModelTarget)
    return found


def describe(tmp_path: Path, **split: Any) -> Run:
    """Return a run of split learning on digits as its settings say, without a model."""
    settings = {"data": {"name": "digits"}, "split": {**SPLIT, **split}}
    return Run("run", tmp_path, {"seed": 0, "system": "split"}, settings)


def make_recipe(described: Run) -> SplitRecipe:
    settings = described.section("split", SplitConfig)
    shield, data = calibrate_shield(settings), load_run_data(described)
    return SplitRecipe(described, settings, shield, data, Compute(ComputeConfig()))


# --------------------------------------------------------------------------------- scores


def test_confidence_is_the_log_of_the_odds() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 400.0, 0.0]])
    p = logits[:2].double().softmax(1)[[0, 1], [0, 2]]
    found = compute_confidence(logits, np.array([0, 2, 1]))
    np.testing.assert_allclose(found[:2], (p / (1 - p)).log().numpy())
    assert found[2] == 100  # a probability of 1, in float64 too
    impossible = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert compute_confidence(impossible, np.array([0]))[0] == -100


def test_rates_are_those_at_one_per_cent_and_at_one_per_mille_of_false_alarms() -> None:
    others = np.arange(1000.0)
    members = np.array([989.5, 990.5, 998.5, 999.5, *range(96)])
    # Of 1000 others 10 may be above the threshold, which is 989 then; and 998, where one may be.
    assert find_hits(members, others, 0.01).sum() == 4
    assert find_hits(members, others, 0.001).sum() == 2
    # Of fewer than 100 none may.
    assert find_hits(np.array([98.0, 99.0, 99.5]), np.arange(100.0)[:99], 0.01).sum() == 2
    scores, truth = np.concatenate([members, others]), np.arange(1100) < 100
    found = measure_scores(scores, truth, 0)
    assert found["success"] == pytest.approx(0.04)
    assert found["tpr_at_0_1_percent"] == pytest.approx(0.02)
    below = [(member > others).mean() + (member == others).mean() / 2 for member in members]
    assert found["auc"] == pytest.approx(np.mean(below))
    assert found["success_low"] < 0.04 < found["success_high"]


def test_the_interval_holds_chance_in_random_scores() -> None:
    """Its lower end is above chance in 2.5 % of cases: in more than 9 of 80, 1 in 10,000."""
    draws, truth = np.random.default_rng(0), np.arange(300) < 150
    lows = [measure_scores(draws.normal(size=300), truth, 0)["success_low"] for _ in range(80)]
    assert sum(low > FALSE_ALARMS for low in lows) <= 9


# --------------------------------------------------------------------------------- attack


def test_an_overfitted_run_gives_its_training_images_away(overfitted: ModelTarget) -> None:
    assert not MembershipInference().explain_unfit([overfitted])
    found = MembershipInference().run(overfitted, EFFORT).metrics
    assert found["shadow_models"] == 4
    assert found["accuracy_on_members"] > found["accuracy_on_others"] + 0.2
    assert found["success_low"] > 3 * found["chance"]
    assert found["auc"] > 0.65
    # The positive control: what is known by heart, is found.
    assert found["success_low_in_the_clear"] > 0.05
    assert found["auc_in_the_clear"] > 0.85


def test_of_a_model_of_other_images_nothing_is_found(overfitted: ModelTarget) -> None:
    """The candidates were in no training: the interval misses chance in 2.5 % of cases."""
    view = overfitted.view
    halves = [np.arange(start, len(view.own), 2) for start in (0, 1)]
    other = view.train(view.own.subset(halves[0]), 1)
    blind = replace(view, model=other, own=view.own.subset(halves[1]))
    shadows = train_shadows(blind, 4, 0)
    found = measure_scores(score(other, shadows, blind), overfitted.members, 0)
    assert found["success_low"] <= FALSE_ALARMS <= found["success_high"]
    # The normal approximation of its deviation is 0.03.
    assert abs(found["auc"] - 0.5) < 0.12


def test_of_an_attack_everything_is_seeded(overfitted: ModelTarget) -> None:
    view = overfitted.view
    once, again, other = (score(view.model, train_shadows(view, 2, s), view) for s in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    known = [memorise(view, 0).view for _ in range(2)]
    logits = [compute_logits(each.model, each.candidates, each.device) for each in known]
    assert torch.equal(*logits)


def test_an_attack_does_not_learn_who_is_a_member(overfitted: ModelTarget) -> None:
    view, members = overfitted.view, overfitted.members
    assert "members" not in {each.name for each in fields(ModelView)}
    # In a random order: as many in either half, within four deviations.
    half = len(members) // 2
    assert abs(members[:half].mean() - 0.5) < 4 * 0.5 / np.sqrt(half)
    assert np.array_equal(view.candidates.rows, np.arange(len(members)))
    assert len(view.candidates.images) == len(members)
    # None of the adversary's own images is a candidate.
    own, candidates = (
        {image.numpy().tobytes() for image in images.plain_images(slice(None))}
        for images in (view.own, view.candidates)
    )
    assert not own & candidates


# ---------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"front": "handoff", "optimizer": {"name": "adam", "learning_rate": 0.003}},
        {"shield": {"name": "batch-norm-laplace", "epsilon": 50, "sensitivity": "experiments"}},
        {"front": "frozen", "release": "once"},
        {"front": "frozen", "release": "once", "cut": "6", "fit": "means"},
        {"front": "frozen", "train": "last-layer", "epochs": 40},
        {"cut": "input", "shield": {"name": "low-resolution", "side": 6}},
    ],
    ids=["averaged", "handed on", "noise", "once", "means", "last layer", "pixels"],
)
def test_shadows_learn_as_the_run_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = make_recipe(describe(tmp_path, **settings))
    data = recipe.data
    model = recipe(data.train.subset(np.arange(400)), 0)
    logits = compute_logits(model, data.test, recipe.device)
    assert (logits.argmax(1).numpy() == data.test.labels).mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"front": "private"}, "fronts are private"),
        ({"front": "frozen", "release": "once", "fit": "none"}, "the model is not trained"),
    ],
)
def test_models_that_the_cloud_has_not(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    found = split_model_target(describe(tmp_path, **settings), "main", 200, 0)
    assert isinstance(found, NoModel)
    assert why in MembershipInference().explain_unfit([found])
    assert why in attacks()["membership"].explain_unfit([found])


def test_too_few_images_are_explained(overfitted: ModelTarget) -> None:
    few = np.arange(LEAST - 1)
    poor = replace(overfitted, view=replace(overfitted.view, own=overfitted.view.own.subset(few)))
    why = MembershipInference().explain_unfit([poor])
    assert why.startswith("needs 100 images or more of each kind, there are 99 images of the adv")
    members = np.arange(len(overfitted.members)) > 50
    why = MembershipInference().explain_unfit([replace(overfitted, members=members)])
    assert "there are 51 images to attack that were not trained on" in why


DLMT = ["dlmt.owners=2", "dlmt.cases={}", "dlmt.measures=false", "dlmt.examiner=null"]


def run_dlmt(directory: Path, settings: Sequence[str]) -> ModelTarget | NoModel:
    epochs = ["dlmt.training={epochs: 3, batch_size: 32, learning_rate: 0.05}"]
    done = run(directory, "dlmt-digits", *DLMT, *epochs, *settings)
    return dlmt_model_target(done, "main", 120, 0)


def test_an_averaged_model_is_attacked(tmp_path: Path) -> None:
    target = run_dlmt(tmp_path / "run", ["dlmt.train=federated", "dlmt.shield=null"])
    assert isinstance(target, ModelTarget)
    assert not MembershipInference().explain_unfit([target])
    view = target.view
    shadow = view.train(view.own, 0)
    for model in (view.model, shadow):
        logits = compute_logits(model, view.candidates, view.device)
        assert (logits.argmax(1).numpy() == view.candidates.labels).mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["dlmt.train=federated", "dlmt.shield=MMT(10)"], "images are disguised"),
        (["dlmt.shield=null"], "the cloud has the training images themselves"),
    ],
)
def test_models_of_dlmt_that_are_not_attacked(
    tmp_path: Path, settings: list[str], why: str
) -> None:
    found = run_dlmt(tmp_path / "run", settings)
    assert why in MembershipInference().explain_unfit([found])
