"""Gradients of averaged fronts and updates of models: what crossed, and how far attacks come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pudica.analysis.attacks import Effort, GradientTarget
from pudica.analysis.attacks.gradient_inversion import (
    GradientInversion,
    bound_chance,
    draw_all,
    invert_gradient,
)
from pudica.analysis.attacks.label_inference import ClassInference, infer_labels
from pudica.analysis.runs import open_run
from pudica.analysis.views.dlmt import targets as dlmt_targets
from pudica.analysis.views.fronts import FrontGradient, FrontsObserver
from pudica.analysis.views.split import targets as split_targets
from pudica.analysis.views.updates import Update, UpdatesObserver
from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.simulations.replaying import replay
from pudica.strategies.app import app as server_app
from pudica.strategies.core.wire_log import Exchanged, WireLog
from pudica.strategies.loading import load_experiment

NONE = "split.shield={name: none}"
FEDERATED = [
    "dlmt.cases={}",
    "dlmt.train=federated",
    "dlmt.measures=false",
    "dlmt.model=mlp",
    "dlmt.training.epochs=2",
]
UNEVEN = "dlmt.partition={scheme: shard, shards_per_node: 3}"
MANY = [UNEVEN, "dlmt.owners=60"]
"""With some 20 images to an owner, and one step to an epoch."""
EFFORT = Effort(epochs=1, images=200, requests=1, seed=0)
Note = Callable[[Exchanged], None]


def run(directory: Path, name: str, settings: list[str], note: Note) -> None:
    """Run an experiment on digits in this process, and show what crosses."""
    experiment = load_experiment(name, settings)
    config = build_run_config(experiment, directory, "inprocess")
    grid = InProcessGrid(client_app, len(experiment.names()), config)
    server_app(WireLog(grid, note), build_server_context(config))


def observe_fronts(directory: Path, *settings: str, note: Note = lambda _: None) -> GradientTarget:
    """Return the gradients that the cloud of split learning got."""
    observer = FrontsObserver("run", "main")

    def both(exchanged: Exchanged) -> None:
        note(exchanged)
        observer.note(exchanged)

    run(directory, "split-digits", ["split.epochs=1", *settings], both)
    return observer.target()


def observe_updates(directory: Path, *settings: str, note: Note = lambda _: None) -> GradientTarget:
    """Return the updates that the cloud of DLMT got."""
    observer = UpdatesObserver("run", "main")

    def both(exchanged: Exchanged) -> None:
        note(exchanged)
        observer.note(exchanged)

    run(directory, "dlmt-digits", [*FEDERATED, *settings], both)
    return observer.target()


class Wire:
    """Arrays of requests and replies of some kinds, in the order in which replies came."""

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds
        self.seen: list[tuple[str, int, dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def note(self, exchanged: Exchanged) -> None:
        if exchanged.kind in self._kinds:
            sides = (protocol.arrays_of(side) for side in (exchanged.request, exchanged.reply))
            self.seen.append((exchanged.kind, exchanged.node, *sides))


def randomise(target: GradientTarget) -> GradientTarget:
    """Return a target whose gradients are noise."""
    generator = torch.Generator().manual_seed(0)
    seen = tuple(
        replace(each, values=torch.randn(each.values.shape, generator=generator))
        for each in target.view.seen
    )
    return replace(target, view=replace(target.view, seen=seen))


# ------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    "settings",
    [[], ["split.batches_per_message=3"], ["split.wire=float16"], ["split.dropouts=1"]],
    ids=["one batch", "three batches", "float16", "dropouts"],
)
def test_a_view_of_fronts_holds_what_crossed(tmp_path: Path, settings: list[str]) -> None:
    wire = Wire(protocol.SMASH, protocol.FRONT_GRADIENT)
    target = observe_fronts(tmp_path / "run", *settings, note=wire.note)
    asked: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    crossed = []
    for kind, node, sent, returned in wire.seen:
        if kind == protocol.SMASH:
            asked[node] = (sent, returned)
        else:
            crossed.append((*asked[node], sent["gradient"], returned["values"]))
    for seen, (sent, smashed, at_cut, values) in zip(target.view.seen, crossed, strict=False):
        assert isinstance(seen, FrontGradient)
        assert seen.labels is not None
        assert np.array_equal(seen.state, sent["front"])
        assert np.array_equal(seen.labels, smashed["labels"])
        assert np.array_equal(seen.values, values[: len(seen.values)])
        ratio = at_cut.astype(np.float32) / seen.at_cut.numpy()
        assert np.nanmin(ratio) == np.nanmax(ratio)  # the scale that goes along, else 1
        assert len(at_cut) == seen.count == sum(seen.sizes)
    assert 0 < len(target.view.seen) <= len(crossed)


@pytest.mark.parametrize(
    "settings",
    [[], ["split.batches_per_message=3"], [NONE], ["split.shield={name: low-resolution, side: 2}"]],
    ids=["batch norm", "three batches", "no shield", "low resolution"],
)
def test_images_behind_a_front_gradient_give_it(tmp_path: Path, settings: list[str]) -> None:
    """So it is known which images they are, and noise has no part in gradients."""
    target = observe_fronts(tmp_path / "run", *settings)
    view = target.view
    for seen, own in zip(view.seen[:4], target.behind, strict=False):
        assert seen.labels is not None
        assert np.array_equal(seen.labels, target.labels[own])
        view.load(seen)
        again = view.compute(seen, target.pixels(own), seen.labels)
        assert torch.allclose(again, seen.values, rtol=1e-4, atol=1e-6)


def test_a_view_of_updates_holds_what_crossed(tmp_path: Path) -> None:
    wire = Wire(protocol.ROUND)
    target = observe_updates(tmp_path / "run", "dlmt.shield=MAT(256)", note=wire.note)
    assert len(target.view.seen) == len(wire.seen) == 3 * 2
    for seen, (_, _, sent, returned) in zip(target.view.seen, wire.seen, strict=True):
        assert isinstance(seen, Update)
        for packed, arrays in ((seen.state, sent), (seen.returned, returned)):
            assert np.array_equal(packed, np.concatenate([arrays["weights"], arrays["buffers"]]))
        assert seen.labels is None
        assert np.array_equal(target.view.mean.flatten(), sent["normalisation"][0])


@pytest.mark.parametrize("shield", [[], ["dlmt.shield=MAT(256)", "dlmt.key=per-owner"]])
@pytest.mark.parametrize("model", ["mlp", "cnn-small"])
def test_images_behind_an_update_of_one_step_give_it(
    tmp_path: Path, model: str, shield: list[str]
) -> None:
    """Disguised by each owner's own key; with momentum and weight decay, which are public."""
    target = observe_updates(tmp_path / "run", *MANY, f"dlmt.model={model}", *shield)
    view = target.view
    for seen, own in zip(view.seen[:4], target.behind, strict=False):
        view.load(seen)
        again = view.compute(seen, target.pixels(own), torch.from_numpy(target.labels[own]))
        assert torch.cosine_similarity(again, seen.values, dim=0) > 0.9999
        assert again.norm() == pytest.approx(float(seen.values.norm()), rel=1e-2)


# ------------------------------------------------------------------- gradient inversion


def test_single_images_are_drawn_from_the_gradient_of_a_wide_front(tmp_path: Path) -> None:
    target = observe_fronts(tmp_path / "run")
    found = GradientInversion().run(target.keep(range(3)), EFFORT).metrics
    assert found["success_low_in_the_clear"] > 5 * found["chance_in_the_clear"]
    assert found["psnr_in_the_clear"] > found["psnr_of_the_mean"] + 10
    # Of 16 images that batch norm ties together, nothing is recognised.
    assert found["success_low"] < found["chance"]


def test_images_of_a_small_batch_are_drawn_where_nothing_is_between(tmp_path: Path) -> None:
    target = observe_fronts(tmp_path / "run", NONE, "split.batch_size=4")
    found = GradientInversion().run(target.keep(range(4)), EFFORT).metrics
    assert found["success_low"] > 5 * found["chance"]


def test_images_are_drawn_from_updates_of_one_step(tmp_path: Path) -> None:
    """Without labels, which are read off the update first."""
    target = observe_updates(tmp_path / "run", *MANY)
    found = GradientInversion().run(target.keep(range(2)), EFFORT).metrics
    assert found["success_low_in_the_clear"] > 5 * found["chance_in_the_clear"]
    assert found["success_low"] > found["chance"]


def test_from_random_gradients_nothing_is_drawn(tmp_path: Path) -> None:
    target = observe_fronts(tmp_path / "run", NONE)
    chosen, candidates = randomise(target).choose(200, 0, 16)
    drawn = draw_all(chosen, 40, 0)
    pool = target.pixels(candidates).flatten(1)
    nearest = candidates[torch.cdist(drawn.images.flatten(1), pool).argmin(1).numpy()]
    assert len(drawn.positions) == 96
    hits = np.count_nonzero(nearest == drawn.positions)
    assert hits <= 96 * bound_chance(chosen, candidates)
    assert drawn.distance > 0.5


def test_drawings_of_classes_alone_are_at_chance(tmp_path: Path) -> None:
    """Each image of the right class, but another's: chance says how often it is of the batch."""
    target = observe_updates(tmp_path / "run", *MANY)
    generator = np.random.default_rng(0)
    chosen, candidates = target.choose(200, 0, 128)
    classes = target.labels[candidates]
    hits = [
        generator.choice(candidates[classes == label], 500)
        for own in chosen.behind
        for label in target.labels[own]
    ]
    owners = [own for own in chosen.behind for _ in own]
    rates = [np.isin(hit, own).mean() for hit, own in zip(hits, owners, strict=True)]
    assert np.mean(rates) == pytest.approx(bound_chance(chosen, candidates), abs=0.01)


def test_of_an_inversion_everything_is_seeded(tmp_path: Path) -> None:
    target = observe_fronts(tmp_path / "run")
    seen = target.view.seen[0]
    assert seen.labels is not None
    once, again, other = (
        invert_gradient(target.view, seen, seen.labels, 10, seed).images for seed in (0, 0, 1)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_candidates_are_twice_as_many_as_images_that_are_attacked(tmp_path: Path) -> None:
    target = observe_fronts(tmp_path / "run")
    for count, gradients, images in ((200, 6, 200), (20, 1, 32)):
        chosen, candidates = target.choose(count, 0, 128)
        assert len(chosen.behind) == gradients
        assert len(candidates) == len(np.unique(candidates)) == images
        assert np.isin(np.concatenate(chosen.behind), candidates).all()


# --------------------------------------------------------------------- label inference


def test_classes_are_read_off_an_update_of_one_step(tmp_path: Path) -> None:
    target = observe_updates(tmp_path / "run", *MANY)
    found = ClassInference().run(target, EFFORT).metrics
    assert found["success_low"] > 0.9
    assert found["correlation"] > 0.95
    assert found["success_in_the_clear"] == 1
    seen, own = target.view.seen[0], target.behind[0]
    labels = infer_labels(target.view, seen, 0)
    assert len(labels) == len(own)
    off = np.abs(np.bincount(labels, minlength=10) - np.bincount(target.labels[own], minlength=10))
    assert off.sum() <= 2


def test_more_rounds_tell_more_of_many_steps(tmp_path: Path) -> None:
    settings = ["dlmt.owners=5", "dlmt.model=cnn-small", "dlmt.training.epochs=4"]
    target = observe_updates(tmp_path / "run", UNEVEN, *settings)
    found = ClassInference().run(target, EFFORT).metrics
    assert found["releases"] == 4
    assert found["success_low"] > 0.6
    assert found["correlation"] > found["correlation_once"]


def test_off_random_updates_classes_are_guessed(tmp_path: Path) -> None:
    target = randomise(observe_updates(tmp_path / "run", *MANY))
    found = ClassInference().run(target, EFFORT).metrics
    assert found["success_low"] < 0.5 < found["success_high"]
    assert abs(found["correlation"]) < 0.25
    assert found["success_in_the_clear"] == 1


# --------------------------------------------------------------------------- fit, open


def test_what_does_not_fit_says_why(tmp_path: Path) -> None:
    fronts = observe_fronts(tmp_path / "fronts")
    even = observe_updates(tmp_path / "even")
    assert "labels cross in the clear" in ClassInference().explain_unfit([fronts])
    assert "every class" in ClassInference().explain_unfit([even])
    assert "399 images or more; 128 at most" in GradientInversion().explain_unfit([even])
    assert "it needs a GradientTarget" in GradientInversion().explain_unfit([])


def test_a_replayed_case_opens_with_its_gradients(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    cases = "split.cases={averaged: {}, private: {front: private}, none: {cut: input}}"
    run(directory, "split-digits", ["split.epochs=1", cases], lambda _: None)
    opened = open_run(directory)
    for case, kinds in (("averaged", 2), ("private", 1), ("none", 1)):

        def again(note: Note, case: str = case) -> None:
            replay(opened, case, note, lambda _: None)

        found = split_targets(opened)[case](opened, case, 40, 0, again)
        assert sum(isinstance(each, GradientTarget) for each in found) == kinds - 1


def test_a_replayed_case_opens_with_its_updates(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    cases = "dlmt.cases={central: {}, federated: {train: federated}}"
    run(directory, "dlmt-digits", [cases, "dlmt.training.epochs=1"], lambda _: None)
    opened = open_run(directory)
    assert list(dlmt_targets(opened)) == ["central", "federated"]

    def again(note: Note) -> None:
        replay(opened, "federated", note, lambda _: None)

    found, _ = dlmt_targets(opened)["federated"](opened, "federated", 40, 0, again)
    assert [seen.node for seen in found.view.seen] == [0, 1, 2]
