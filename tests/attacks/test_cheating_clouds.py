"""What a cloud that cheats gets of a device that was promised something, message by message.

Each attack got private images, or what was promised them, from a device that counted epochs, drew
noise anew from a few of its inputs, and answered questions for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheating_cloud import Refused
from node_under_attack import DEFAULT, SETTINGS, STRICTEST, NodeUnderAttack

from pudica.clients import protocol
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.odometer import ACTIVATIONS, COUNTS, activations, count, spent
from pudica.clients.shields.accounting import LARGEST
from pudica.clients.shields.disguises import Key
from pudica.models import packing
from pudica.models.errors import RequestError

EPSILON, DELTA = 3.0, 1e-5


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=list(SETTINGS))
def device(request: pytest.FixtureRequest, tmp_path: Path) -> NodeUnderAttack:
    """Return a device with each kind of settings, that has joined."""
    made = NodeUnderAttack(tmp_path / "node", **SETTINGS[request.param])
    made.join()
    return made


def fronts(device: NodeUnderAttack, number: int) -> list[np.ndarray]:
    """Return fronts that differ in the last bit of one weight."""
    front = device.packed(device.front(0))
    found = [front]
    for _ in range(number - 1):
        other = found[-1].copy()
        other[3] = np.nextafter(other[3], np.float32(np.inf))
        found.append(other)
    return found


def ask_in(device: NodeUnderAttack, case: str, front: np.ndarray, **changes: Any) -> None:
    device.join(case=case, **changes)
    device.smash(front=front)


def outcome(attempt: Callable[[], object]) -> str:
    """Return nothing if a device answers, the error's beginning if it refuses."""
    try:
        attempt()
    except Refused as refusal:
        return str(refusal).removeprefix("BudgetExhausted: ").partition(":")[0]
    return ""


def assert_within_budget(device: NodeUnderAttack) -> None:
    entries = device.odometer().entries()
    assert activations(count(entries)) <= 1
    assert spent(count(entries), DELTA) <= EPSILON * (1 + 1e-9)


# ------------------------------------------------------------- 1: other statistics, old noise


def with_other_statistics(device: NodeUnderAttack, front: np.ndarray) -> np.ndarray:
    """Return a front with the same weights, in which nothing of an image is left."""
    built = device.front(0)
    packing.unpack(torch.from_numpy(front), packing.state_tensors(built))
    for name, buffer in built.named_buffers():
        if "running_var" in name:
            buffer.fill_(1e30)
    return device.packed(built)


def test_noise_does_not_come_back_on_other_activations(device: NodeUnderAttack) -> None:
    front = fronts(device, 1)[0]
    first = device.try_smash(front=front)
    assert first is not None
    device.join()
    with pytest.raises(Refused, match="the front is frozen, and stays as it is"):
        device.smash(front=with_other_statistics(device, front))
    again = device.try_smash(front=front)
    assert np.array_equal(first, again)  # the same function, the same bytes
    assert_within_budget(device)


@pytest.mark.parametrize("fronts_are", ["private", "frozen"])
@pytest.mark.parametrize(
    "shield", [{"name": "batch-norm-laplace"}, {"name": "norm-gaussian"}, {"name": "pixel-laplace"}]
)
def test_nor_does_noise_that_promises_nothing(
    tmp_path: Path, fronts_are: str, shield: dict[str, Any]
) -> None:
    """Statistics of batch norm count, in a front that learns as in one that does not."""
    shield = {**shield, "epsilon": 5.0}
    noises = []
    for name in ("as it is", "constant"):
        device = NodeUnderAttack(tmp_path / "node", shield=shield, fronts=[fronts_are])
        device.run = name
        device.join(shield=shield, fronts=fronts_are)
        front = fronts(device, 1)[0]
        given = with_other_statistics(device, front) if name == "constant" else front
        sent = device.smash(front=given).arrays["smashed"].numpy()
        again = device.smash(front=given).arrays["smashed"].numpy()
        assert np.array_equal(sent, again)
        built = device.front(0).train(fronts_are != "frozen")
        packing.unpack(torch.from_numpy(given), packing.state_tensors(built))
        x, _ = device.private.batch(device.order(0)[:64])
        clean = built.shield.train().bounded(built(x)).detach().numpy()
        noises.append((sent - clean).ravel())
    assert abs(np.corrcoef(noises)[0, 1]) < 0.05


# -------------------------------------------------------------- 2: many fronts, one epoch


def test_no_front_is_asked_for_free(device: NodeUnderAttack) -> None:
    answers = [device.try_smash(front=front) for front in fronts(device, 30)]
    assert [number for number, sent in enumerate(answers) if sent is not None] == [0]
    assert_within_budget(device)


def test_not_even_where_each_front_begins_a_case_of_its_own(device: NodeUnderAttack) -> None:
    outcomes = [
        outcome(lambda: ask_in(device, f"case {number}", front))  # noqa: B023
        for number, front in enumerate(fronts(device, 10))
    ]
    assert outcomes == ["", *["the budget is exhausted"] * 9]
    assert_within_budget(device)


@pytest.mark.parametrize("releases", [1, 3])
def test_the_papers_noise_is_drawn_as_often_as_the_node_says(tmp_path: Path, releases: int) -> None:
    shield = {"name": "batch-norm-laplace", "epsilon": 5.0}
    device = NodeUnderAttack(tmp_path / "node", shield=shield, releases=releases)
    answered = 0
    for run in ("first", "second"):
        device.run = run
        for case in ("one", "two"):
            joined = outcome(partial(device.join, shield=shield, case=case, reports={}))
            for epoch, front in enumerate(fronts(device, 4)):
                sent = None if joined else device.try_smash(front=front, epoch=epoch)
                answered += sent is not None
    assert answered == releases
    assert activations(count(device.odometer().entries())) == releases


# ----------------------------------------------------- 3: other runs, cases, names, systems


ELSEWHERE: dict[str, dict[str, Any]] = {
    "another case": {"case": "another"},
    "another run": {"run": "another"},
    "another seed": {"case": "another", "seed": 7},
    "another division": {"case": "another", "data_seed": 7},
    "smaller batches": {"case": "another", "batch_size": 8},
    "another clip": {"case": "another", "shield": {**STRICTEST["shield"], "clip": 1e6}},
    "less noise": {"case": "another", "shield": {**STRICTEST["shield"], "epsilon": 2.9}},
    "a larger budget": {"case": "another", "budget": {"epsilon": 1e6, "delta": 0.9}},
    "limits of its own": {
        "case": "another",
        "limits": {"epsilon": 1e6, "delta": 0.9, "activations": 99, "front": None},
    },
    "other images": {"run": "another", "data": {"name": "digits", "image_size": 9}},
}


@pytest.mark.parametrize("change", ELSEWHERE)
def test_the_count_does_not_begin_anew(device: NodeUnderAttack, change: str) -> None:
    assert device.try_smash(front=fronts(device, 1)[0]) is not None
    changes = dict(ELSEWHERE[change])
    device.run = changes.pop("run", device.run)
    case = changes.pop("case", "main")
    front = fronts(device, 1)[0]
    with pytest.raises(Refused, match=r"exhausted|sends nothing but"):
        ask_in(device, case, front, **changes)
    assert_within_budget(device)


def test_nor_under_another_name(device: NodeUnderAttack) -> None:
    assert device.try_smash(front=fronts(device, 1)[0]) is not None
    device.settings(**DEFAULT, name="bob")
    device.run = "another"
    with pytest.raises(Refused, match="the budget is exhausted"):
        device.join()


def test_training_images_do_not_come_as_test_images_of_another_division(
    device: NodeUnderAttack,
) -> None:
    front = fronts(device, 1)[0]
    assert device.try_smash(front=front) is not None
    changes = {"case": "another", "data_seed": 3, "releases": 0}
    with pytest.raises(Refused, match="exhausted"):
        device.join(**changes, test_features=True, reports={})
    device.join(**changes, reports={})
    with pytest.raises(Refused, match="exhausted"):
        device.features(0, 64, front=front)
    assert_within_budget(device)


def test_a_node_with_a_budget_takes_part_in_nothing_that_has_none(tmp_path: Path) -> None:
    device = NodeUnderAttack(tmp_path / "node", **DEFAULT, systems=["split", "dlmt", "facemix"])
    device.join()
    assignment = {
        **device.assignment.model_dump(mode="json", include={"run", "data", "data_seed"}),
        "partition": 0,
        "partitions": 1,
        "compute": {},
        "system": "facemix",
        "case": "main",
        "model": "cnn-tiny",
        "stages": ["0", "2"],
        "shield": {"name": "mixing"},
        "keys": "secret",
        "train": "central",
        "seed": 0,
        "batch_size": 64,
        "request": 512,
        "wire": "float32",
        "report": True,
    }
    with pytest.raises(Refused, match="under a budget, which facemix would spend without end"):
        device.send(protocol.JOIN, {"assignment": json.dumps(assignment), "turn": -1})


def test_what_left_without_a_guarantee_before_is_not_forgotten(tmp_path: Path) -> None:
    device = NodeUnderAttack(tmp_path / "node", trust_organiser=True)
    device.join(shield={"name": "none"}, fronts="private")
    assert device.try_smash(front=fronts(device, 1)[0]) is not None
    device.settings(**DEFAULT)
    device.run = "another"
    with pytest.raises(Refused, match="would be ε = inf"):
        device.join()


# ------------------------------------------------------------------- 4: counts as an oracle


def backs(device: NodeUnderAttack, number: int) -> list[np.ndarray]:
    """Return backs that ask as many different questions."""
    size = len(device.back())
    random = np.random.default_rng(0)
    return [random.normal(size=size).astype(np.float32) for _ in range(number)]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_counts_are_no_oracle(device: NodeUnderAttack, part: str) -> None:
    """With 528 of them a training image was read to the last pixel."""
    front, answers = fronts(device, 1)[0], []
    for back in backs(device, 40):
        try:
            answers.append(device.evaluate(back, part, front=front).metrics)
        except Refused as refusal:
            answers.append(str(refusal))
    told = [answer for answer in answers if not isinstance(answer, str)]
    assert len(told) == (1 if part == "test" else 0)
    for answer in told:
        assert device.evaluate(backs(device, 1)[0], part, front=front).metrics == answer
    assert_within_budget(device)


def test_what_is_counted_has_the_noise_that_was_paid_for(tmp_path: Path) -> None:
    """False alarm below 1e-6: the deviation of 25 draws, which is 5.7."""
    told = []
    for number in range(25):
        device = NodeUnderAttack(tmp_path / str(number), **DEFAULT)
        device.forgets = 0.0
        device.join()
        told.append(device.evaluate(backs(device, 1)[0], front=fronts(device, 1)[0]).metrics)
    plain = np.array([answer["plain"] for answer in told])
    assert 1.5 < plain.std() < 16
    entries = device.odometer().entries()
    assert [(e.release.what, e.release.noise, e.release.ratio) for e in entries] == [
        (COUNTS, "laplace", 0.5)
    ]


def test_predictions_are_counted_as_often_as_agreed(device: NodeUnderAttack) -> None:
    shield = {**STRICTEST["shield"], "epsilon": 2.0}
    device.join(case="another", shield=shield, test_features=True)
    front = fronts(device, 1)[0]
    sent = device.features(0, 64, front=front).arrays["features"]
    assert torch.equal(device.features(0, 64, front=front).arrays["features"], sent)
    total = len(device.held_out("test"))
    said = [outcome(lambda: device.count_correct(np.full(total, label))) for label in range(10)]  # noqa: B023
    assert said == ["", *["the budget is exhausted"] * 9]
    assert_within_budget(device)


@pytest.mark.parametrize("shape", ["square", "one row", "floats", "one more"])
def test_predictions_are_one_for_each_image(device: NodeUnderAttack, shape: str) -> None:
    """Compared in all combinations, one column told one label through any noise."""
    total = len(device.held_out("test"))
    square = np.full((total, total), -1)
    asked = {
        "square": square,
        "one row": square[:1],
        "floats": np.zeros(total, np.float32),
        "one more": np.zeros(total + 1, np.int64),
    }
    with pytest.raises(Refused, match="predictions"):
        device.count_correct(asked[shape])
    assert device.odometer().entries() == []


def test_a_count_costs_its_epsilon_whoever_names_it(device: NodeUnderAttack) -> None:
    for number, epsilon in ((1, None), (1, 50.0), (7, 0.5), (10_000, 0.5)):
        with pytest.raises(Refused, match="exhausted"):
            device.join(case="another", reports={"test": {"count": number, "epsilon": epsilon}})


@pytest.mark.parametrize(
    "kind", [protocol.FRONT_GRADIENT, protocol.FRONT], ids=["gradients", "the front"]
)
def test_what_stays_on_the_device_stays(device: NodeUnderAttack, kind: str) -> None:
    device.smash(front=fronts(device, 1)[0])
    with pytest.raises(Refused, match="the front is frozen, and stays on this device"):
        device.ask(kind, {"turn": 1}, {"gradient": np.zeros((64, 1), np.float32)})


def test_a_private_front_is_not_fetched(tmp_path: Path) -> None:
    shield = {"name": "batch-norm-laplace", "epsilon": 5.0}
    device = NodeUnderAttack(tmp_path / "node", shield=shield, fronts=["private"])
    device.join(shield=shield, fronts="private")
    device.smash(front=fronts(device, 1)[0])
    with pytest.raises(Refused, match="the front is private, and stays on this device"):
        device.fetch_front()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_whether_an_activation_is_finite_is_no_answer(
    device: NodeUnderAttack, poison: float
) -> None:
    front = fronts(device, 1)[0]
    front[: len(front) // 2] = poison
    sent = device.try_smash(front=front)
    assert sent is not None
    assert sent.dtype == np.int16
    assert "forward" not in device.smash(front=front).metrics


def test_activations_leave_with_noise_or_not_at_all(device: NodeUnderAttack) -> None:
    for wish in ({"plain_to_cloud": True}, {"noise": "seeded"}, {"fronts": "average"}):
        with pytest.raises(Refused, match="sends nothing but behind"):
            device.join(case="another", **wish)
    device.join()
    with pytest.raises(Refused, match="without noise are not given away"):
        device.features(0, 64, noisy=False, front=fronts(device, 1)[0])


def test_images_are_not_normalised_by_one_another(device: NodeUnderAttack) -> None:
    with pytest.raises(Refused, match="nothing can be promised to images that are normalised"):
        device.join(case="another", data={"name": "digits", "normalize": "training"})


# -------------------------------------------------------------- 5: what node.yaml leaves out


def test_delta_is_never_more_than_one_in_as_many_as_there_are_images(tmp_path: Path) -> None:
    device = NodeUnderAttack(tmp_path / "node", **DEFAULT)
    for delta in (0.999, 0.1, 1e-3, 1.1e-5):
        with pytest.raises(Refused, match="the organiser wants δ"):
            device.join(case=f"{delta}", shield={**STRICTEST["shield"], "delta": delta})
    device.join(case="fine", shield={**STRICTEST["shield"], "delta": 1e-7})


@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace", "batch-norm-laplace"])
@pytest.mark.parametrize("epsilon", [{}, {"epsilon": None}])
def test_no_mechanism_goes_without_an_epsilon(
    tmp_path: Path, name: str, epsilon: dict[str, None]
) -> None:
    device = NodeUnderAttack(tmp_path / "node", shield={"name": name, **epsilon})
    with pytest.raises(Refused, match="without epsilon leaves it to the organiser"):
        device.join(shield={"name": name, "epsilon": None})


@pytest.mark.parametrize("clip", [1.5e308, 1e7, 1e-9, 0.0, -1.0])
@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace"])
def test_a_clip_is_a_number_that_can_be_accounted_for(
    tmp_path: Path, clip: float, name: str
) -> None:
    """A cost that is no number was within any budget, and so was all that came after it."""
    device = NodeUnderAttack(tmp_path / "node", shield={"name": name, "epsilon": 3.0})
    shield = {"name": name, "epsilon": 3.0, "clip": clip}
    device.join(shield={**shield, "clip": 1.0})
    content = device.assignment.model_dump(mode="json")
    told = json.dumps({**content, "shield": shield, "case": "another"})
    with pytest.raises(Refused, match="clip"):
        device.send(protocol.JOIN, {"assignment": told, "turn": -1})


def test_no_code_is_loaded_that_only_the_organiser_names(device: NodeUnderAttack) -> None:
    for model in ("custom:unittest.__main__:main", "custom:this:x", "here.pt2"):
        with pytest.raises(Refused, match="names a model that is code or a file"):
            device.join(case="another", model=model)


@pytest.mark.parametrize("place", ["model", "examiner"])
def test_an_owner_loads_no_code_either(tmp_path: Path, place: str) -> None:
    key = tmp_path / "key.safetensors"
    Key.from_seed("MAT(256)", (1, 8, 8), 0).save(key)
    device = NodeUnderAttack(tmp_path / "node", systems=["dlmt"], key=str(key), measures=True)
    assignment = {
        "run": device.run,
        "data": {"name": "digits"},
        "data_seed": 0,
        "partition": 0,
        "partitions": 1,
        "compute": {},
        "system": "dlmt",
        "case": "main",
        "shield": "MAT(256)",
        "key": "shared",
        "train": "central",
        "model": "cnn-tiny",
        "training": {},
        "local_epochs": 1,
        "keep_momentum": False,
        "measures": True,
        "examiner": None,
        "seed": 0,
        place: "custom:unittest.__main__:main",
    }
    with pytest.raises(Refused, match="names a model that is code or a file"):
        device.send(protocol.JOIN, {"assignment": json.dumps(assignment), "turn": -1})


@pytest.mark.parametrize(
    "shield",
    [
        {"name": "clip-gaussian", "epsilon": None},
        {"name": "clip-gaussian", "epsilon": 3.1},
        {"name": "clip-laplace", "epsilon": 3.0},
        {"name": "none"},
        {"name": "batch-norm-laplace", "epsilon": 3.0},
    ],
)
def test_no_shield_is_weaker_than_the_nodes(
    device: NodeUnderAttack, shield: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="sends nothing but behind"):
        device.join(case="another", shield=shield)


def test_a_pinned_front_is_the_only_one(tmp_path: Path) -> None:
    device = NodeUnderAttack(tmp_path / "node", **DEFAULT, front="0" * 32)
    device.join()
    with pytest.raises(Refused, match=r"takes the front 0+ and no other") as refusal:
        device.smash(front=fronts(device, 1)[0])
    pinned = str(refusal.value).rsplit(" ", 1)[1]
    device.settings(**DEFAULT, front=pinned)
    assert device.try_smash(front=fronts(device, 1)[0]) is not None


def test_no_front_is_made_up_by_keeping_what_was_never_given(tmp_path: Path) -> None:
    device = NodeUnderAttack(tmp_path / "node", **DEFAULT, front="0" * 32)
    device.join()
    for attempt in (
        partial(device.smash, count=0, keep=1),
        partial(device.ask, protocol.FRONT, {"turn": 1}, {}),
        device.smash,
    ):
        with pytest.raises(Refused, match=r"no front|stays on this device"):
            attempt()


def test_a_pinned_front_is_pinned_behind_a_papers_shield_too(tmp_path: Path) -> None:
    shield = {"name": "batch-norm-laplace", "epsilon": 5.0}
    device = NodeUnderAttack(tmp_path / "node", shield=shield, front="0" * 32)
    device.join(shield=shield, fronts="private")
    with pytest.raises(Refused, match="and no other"):
        device.smash(front=fronts(device, 1)[0])


def test_what_can_not_be_protected_is_paid_for_all_the_same(tmp_path: Path) -> None:
    """Whether a front overflows tells of images: no oftener than activations may leave."""
    shield = {"name": "pixel-laplace", "epsilon": 5.0}
    device = NodeUnderAttack(tmp_path / "node", shield=shield, releases=2)
    device.join(shield=shield, fronts="private", reports={}, releases=2)
    answers = []
    for number in range(6):
        front = fronts(device, 1)[0]
        front[number:] = np.inf
        answers.append(outcome(partial(device.smash, front=front)))
    assert answers[2:] == ["the budget is exhausted"] * 4
    assert "ValueError" in answers[0]
    assert activations(count(device.odometer().entries())) == 2


def test_settings_that_contradict_a_guarantee_are_refused(tmp_path: Path) -> None:
    for settings, why in (
        ({**DEFAULT, "report": "exact"}, "no part of what this shield promises"),
        ({"shield": {"name": "norm-gaussian", "epsilon": 1.0}, "budget": {"epsilon": 1}}, "needs"),
        ({"report": "noisy"}, "needs a shield that has a guarantee"),
        ({"fronts": ["frozen"], "trust_organiser": True}, "fronts: needs a shield"),
        ({"cut": "2", "trust_organiser": True}, "cut: needs a shield"),
        ({"releases": 1}, "releases: needs a shield"),
        ({**DEFAULT, "budget": {"epsilon": -1}}, "budget.epsilon"),
    ):
        device = NodeUnderAttack(tmp_path / "node", **DEFAULT)
        device.settings(**settings)
        with pytest.raises(RequestError, match=why):
            NodeConfig.read(device.directory / "node.yaml")


# ------------------------------------------------------------------ what is promised, and kept


def test_a_budget_buys_what_it_says(tmp_path: Path) -> None:
    """Three releases of ε = 1 cost less than a budget of 3; more are refused."""
    shield = {"name": "clip-gaussian", "epsilon": 1.0, "delta": 1e-6}
    device = NodeUnderAttack(
        tmp_path / "node", shield=shield, releases=50, budget={"epsilon": 3, "delta": DELTA}
    )
    outcomes = []
    device.join(shield=shield, reports={})
    front = fronts(device, 1)[0]
    for run in range(25):
        device.run = f"run {run}"
        asked = partial(ask_in, device, "main", front, shield=shield, reports={})
        outcomes.append(outcome(asked))
    answered = outcomes.count("")
    assert outcomes == [""] * answered + ["the budget is exhausted"] * (25 - answered)
    entries = device.odometer().entries()
    assert sum(entry.release.what == ACTIVATIONS for entry in entries) == answered
    assert 3 < answered < 25
    assert spent(count(entries), DELTA) <= 3 < LARGEST


def test_a_restart_and_a_repetition_cost_nothing(device: NodeUnderAttack) -> None:
    front = fronts(device, 1)[0]
    sent = [device.try_smash(front=front) for _ in range(5)]
    assert all(np.array_equal(sent[0], each) for each in sent)
    assert activations(count(device.odometer().entries())) == 1
