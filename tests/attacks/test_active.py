"""Attacks by a cloud that cheats on a device of a run, and by one that chooses the records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cheating_cloud import CheatingCloud

from pudica.analysis.attacks import Effort
from pudica.analysis.attacks.neighbours import SAMPLES, NeighbourAudit
from pudica.analysis.attacks.steering import LEAST_TURNS, Hijacking, count_epochs
from pudica.analysis.views.active import ActiveTarget
from pudica.analysis.views.shielded import ShieldTarget
from pudica.clients.assignments import Budget
from pudica.clients.shields import (
    AdditiveNoise,
    BatchNormLaplace,
    ClipGaussian,
    LowResolution,
    NoShield,
    PixelLaplace,
    Shield,
)

EFFORT = Effort(epochs=1, images=100, requests=1, seed=0)
STRONG = {"name": "clip-gaussian", "epsilon": 1.0}


@pytest.fixture
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ActiveTarget:
    """Return a device with a third of the digits, with the settings of a test's parameter."""
    cloud = CheatingCloud(tmp_path_factory.mktemp("device"))
    cloud.join(**getattr(request, "param", {}))
    return ActiveTarget("run: case 'main'", cloud.assignment)


# --------------------------------------------------------------------------- hijacking


@pytest.mark.parametrize(
    "target",
    [
        {},
        pytest.param({"fronts": "average", "cut": "1"}, marks=pytest.mark.slow),
        pytest.param({"fronts": "handoff", "wire": "float16"}, marks=pytest.mark.slow),
    ],
    ids=["private", "average", "handoff"],
    indirect=True,
)
def test_without_a_shield_a_steered_device_gives_its_images_away(target: ActiveTarget) -> None:
    """And more than the labels do, which cross anyway."""
    outcome = Hijacking().run(target, EFFORT)
    found = outcome.metrics
    assert found["success_low"] > max(0.4, found["success_high_of_the_class"])
    assert found["psnr"] > found["psnr_of_the_class"] + 1 > found["psnr_of_the_mean"] + 1
    assert found["success_in_the_clear"] == found["success"]
    assert found["chance"] == 0.01
    assert found["releases"] == 1
    assert found["turns"] >= LEAST_TURNS
    shapes = {name: picture.shape for name, picture in outcome.pictures.items()}
    assert shapes == dict.fromkeys(("original", "drawn", "drawn, in the clear"), (8, 1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"shield": STRONG}], indirect=True)
def test_strong_noise_for_records_hides_what_the_control_shows(target: ActiveTarget) -> None:
    found = Hijacking().run(target, EFFORT).metrics
    assert found["releases"] == 16
    assert found["success_low_in_the_clear"] > 0.4
    for suffix in ("", "_once"):
        assert found[f"success_high{suffix}"] < 0.2
        assert found[f"psnr{suffix}"] < found["psnr_of_the_class"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fronts": "frozen"}, "a frozen front is not steered"),
        ({"budget": Budget(epsilon=1, delta=1e-5)}, "a budget limits how often a device answers"),
        ({"cut": "input"}, "the front has nothing that learns"),
    ],
)
def test_who_is_not_steered_is_explained(
    target: ActiveTarget, changes: dict[str, Any], why: str
) -> None:
    changed = replace(target, assignment=target.assignment.model_copy(update=changes))
    assert Hijacking().explain_unfit([target]) == ""
    assert Hijacking().explain_unfit([changed]) == why


def test_without_own_images_nothing_is_learned(target: ActiveTarget) -> None:
    few = replace(target.data, test=target.own.subset(slice(0, 3)))
    target.__dict__["data"] = few  # as the cached property keeps it
    assert Hijacking().explain_unfit([target]).startswith("the adversary has 3 images of its own")


def test_effort_is_in_epochs_but_never_too_few_turns(target: ActiveTarget) -> None:
    with target.join(target.make_front(0), seed=0) as device:
        assert device.steps == 7
        assert count_epochs(device, EFFORT) == 36
        assert count_epochs(device, EFFORT._replace(epochs=20)) == 60


@pytest.mark.parametrize("target", [{"shield": STRONG}, {"cut": "1"}], indirect=True)
def test_a_device_answers_as_over_flower(
    target: ActiveTarget, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the last bit, also after a step of its front."""
    answers = []
    with target.join(target.make_front(1), seed=0) as device:
        cloud = CheatingCloud(tmp_path_factory.mktemp("flower"))
        joined = device.assignment
        cloud.join(**joined.model_dump(exclude={"run", "system"}))
        for each in (device, cloud.steer(target.make_front(1))):
            smashed, _ = each.release(0)
            each.steer(torch.ones_like(smashed))
            answers.append((smashed, *each.release(1)))
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------- audit


def audit(
    shield: Shield, shape: tuple[int, ...], batch: int = 16, epochs: int = 1
) -> dict[str, float]:
    """Return the measurements of an attack on a shield."""
    target = ShieldTarget("run: case 'main'", shield.bind(shape, batch))
    assert NeighbourAudit().explain_unfit([target]) == ""
    return NeighbourAudit().run(target, EFFORT._replace(epochs=epochs)).metrics


def test_behind_very_much_noise_neighbours_are_told_apart_by_chance_only() -> None:
    found = audit(ClipGaussian(epsilon=0.01), (64, 2, 2), epochs=3)
    assert found["success_low"] < found["chance"] < found["success_high"]
    assert found["epsilon_shown"] < 0.1
    assert found["claimed_epsilon"] == 0.01
    assert found["refuted"] == 0
    assert found["samples"] == 3 * SAMPLES
    assert found["success_low_in_the_clear"] > 0.7


def test_the_claim_of_paper_002_is_refuted_for_a_record() -> None:
    found = audit(BatchNormLaplace(epsilon=1.0), (160,))
    assert found["refuted"] == 1
    assert found["claimed_epsilon"] < found["epsilon_shown"] <= found["epsilon_ceiling"]
    assert found["success_low"] > 0.9


@pytest.mark.parametrize(
    "shield",
    [NoShield(), LowResolution(side=2), ClipGaussian(epsilon=None), AdditiveNoise(variance=0.0)],
    ids=lambda shield: shield.config.name,
)
def test_without_noise_an_output_names_its_record(shield: Shield) -> None:
    found = audit(shield, (3, 8, 8))
    ends = [found[name] for name in ("success", "success_low", "success_high")]
    assert ends == [1, 1, 1]
    assert found["chance"] == 0.5
    assert "epsilon_shown" not in found


class Constant(NoShield):
    """Lets nothing through."""

    def _protect(self, tensor: torch.Tensor, randomness: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(super()._protect(tensor, randomness)[0]), None


def test_where_all_outputs_are_alike_one_can_only_guess() -> None:
    found = audit(Constant(), (4,))
    assert found["success"] == found["success_high"] == found["chance"]
    assert found["success_in_the_clear"] == 1


def test_noise_on_what_has_no_bound_is_not_audited() -> None:
    target = ShieldTarget("run", AdditiveNoise(variance=4.0).bind((4,), 2))
    assert "'noise' draws noise, but bounds nothing" in NeighbourAudit().explain_unfit([target])


def test_a_shield_is_left_as_it_was() -> None:
    """An audit binds a copy to one record, where others do not matter."""
    shield = PixelLaplace(epsilon=1.0).bind((1, 2, 2), 8)
    target = ShieldTarget("run", shield)
    NeighbourAudit().run(target, EFFORT)
    assert shield.batch_size == 8
    assert target.isolate().batch_size == 1
    assert (
        ShieldTarget("run", BatchNormLaplace(epsilon=1.0).bind((4,), 8)).isolate().batch_size == 8
    )
