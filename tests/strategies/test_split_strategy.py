"""Split learning as a strategy in somebody's own Flower app: own modules, own data, no YAML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, Strategy
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from pudica.clients import Edge, protocol
from pudica.clients.assignments import SplitTerms
from pudica.clients.data import DataError
from pudica.clients.runtime.role import OwnApp
from pudica.clients.runtime.vault import MemoryVault
from pudica.clients.shields import (
    BatchNormLaplace,
    ClipGaussian,
    NoPeek,
    protect_without_noise,
)
from pudica.clients.split.holder import KEY
from pudica.models import packing
from pudica.models.errors import RequestError
from pudica.models.optimizers import OptimizerConfig
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context
from pudica.strategies import SplitLearning, TooFewParticipants
from pudica.strategies.split.model import try_model

SHAPE, CLASSES = (1, 4, 4), 3
NAMES = ("zoe", "adam", "mia")
ROUNDS, BATCH = 3, 8
MODES = ("average", "handoff", "private", "frozen")


def examples(count: int, seed: int = 0) -> TensorDataset:
    """Classes that differ in which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.randn((count, *SHAPE), generator=generator)
    x[torch.arange(count), 0, y] += 1
    return TensorDataset(x, y)


TRAIN = [examples(18 + 8 * place, place) for place in range(3)]
TEST = [examples(21, 10 + place) for place in range(3)]


def front(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())


def back(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.2, momentum=0.5)


def edge(place: int, **changes: Any) -> Edge:
    usual: dict[str, Any] = {
        "front": front(),
        "train": TRAIN[place],
        "test": TEST[place],
        "back": back(),
        "optimizer": sgd,
        "name": NAMES[place],
        "seed": place,
    }
    return Edge(**{**usual, **changes})


def usual_edge(context: Context) -> Edge:
    return edge(int(context.node_config["partition-id"]))


class Recording(InProcessGrid):
    """Remembers all messages; stops after so many replies, if told to."""

    def __init__(
        self, factory: Callable[[Context], Any], nodes: int = len(NAMES), **config: str
    ) -> None:
        super().__init__(Edge.app(factory), nodes, config)
        build_server_context({})
        self.requests: list[Message] = []
        self.replies: list[Message] = []
        self.stop_after: int | None = None

    def _answer(self, message: Message) -> Message:
        self.requests.append(message)
        if self.stop_after is not None and len(self.requests) > self.stop_after:
            raise KeyboardInterrupt
        reply = super()._answer(message)
        self.replies.append(reply)
        return reply


def grid(factory: Callable[[Context], Any] = usual_edge, nodes: int = len(NAMES)) -> Recording:
    return Recording(factory, nodes)


def strategy(**settings: Any) -> SplitLearning:
    usual = {"batch_size": BATCH, "optimizer": sgd, "min_nodes": 3}
    return SplitLearning(front(), back(), **{**usual, **settings})


def train(on: Any = None, rounds: int = ROUNDS, **settings: Any) -> tuple[SplitLearning, Any]:
    made = strategy(**settings)
    return made, made.start(on or grid(), num_rounds=rounds)


def values(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: arrays[key].numpy() for key in arrays}


def same(a: ArrayRecord, b: ArrayRecord) -> bool:
    one, other = values(a), values(b)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


# ---------------------------------------------------------------------------- it trains


@pytest.mark.parametrize("fronts", MODES)
def test_own_modules_and_data_are_trained_across_the_cut(fronts: str) -> None:
    made, result = train(fronts=fronts)
    frame = result.frame()
    losses = frame[(frame.stage == "training") & (frame.metric == "loss")].value.tolist()
    assert len(losses) == ROUNDS
    assert losses[-1] < losses[0]
    measured = frame[(frame.metric == "accuracy") & (frame.release == "plain")]
    assert set(measured.node) == {*NAMES, "cloud"}
    assert sorted(measured["round"].unique()) == [1, 2, 3]
    assert result.evaluate_metrics_clientapp[ROUNDS]["accuracy-plain"] > 0.6
    assert set(values(result.arrays)) == {
        *("front.0.weight", "front.0.bias", "back.1.weight", "back.1.bias")
    }
    moved = not np.array_equal(values(result.arrays)["front.0.weight"], front()[0].weight.detach())
    assert moved == (fronts in ("average", "handoff"))
    assert made.devices.members["zoe"].train == len(TRAIN[0])


def test_averaging_is_sgd_on_the_union_of_the_devices_batches() -> None:
    made_of = {}

    def factory(context: Context) -> Edge:
        place = int(context.node_config["partition-id"])
        made_of[place] = usual_edge(context)
        return made_of[place]

    _, result = train(grid(factory), rounds=2, fronts="average")
    model = nn.Sequential(front(), back())
    optimizer = sgd(model.parameters())
    for epoch in range(2):
        sizes = [protocol.batch_sizes(len(each), BATCH) for each in TRAIN]
        for step in range(max(map(len, sizes))):
            there = [made_of[place] for place in range(3) if step < len(sizes[place])]
            parts = [each.train.batch(each._positions(epoch, step)) for each in there]
            x, y = (torch.cat(each) for each in zip(*parts, strict=True))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    found = values(result.arrays)
    for key, value in model.state_dict().items():
        name = f"{('front', 'back')[int(key[0])]}{key[1:]}"
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fit", ["sgd", "means", "none"])
def test_every_example_is_released_once(fit: str) -> None:
    on = grid()
    _, result = train(on, fronts="frozen", release="once", fit=fit)
    sent = sum(
        len(protocol.arrays_of(reply.content)["labels"])
        for reply in on.replies
        if reply.metadata.message_type == protocol.SMASH
    )
    assert sent == (0 if fit == "none" else sum(map(len, TRAIN)))
    frame = result.frame()
    assert len(frame[(frame.stage == "training") & (frame.metric == "loss")]) == (
        ROUNDS if fit == "sgd" else 0
    )
    right = result.evaluate_metrics_clientapp[ROUNDS]["accuracy-plain"]
    assert right > 0.6 or fit == "none"


def test_a_shield_protects_each_record_and_says_so() -> None:
    made_of = {}

    def factory(context: Context) -> Edge:
        place = int(context.node_config["partition-id"])
        made_of[place] = edge(place, shield=ClipGaussian(epsilon=50.0, delta=1e-5, clip=1.0))
        return made_of[place]

    on = grid(factory)
    train(on, fronts="frozen", release="once")
    guarantee = made_of[0].guarantee()
    assert (guarantee.epsilon, guarantee.unit) == (50.0, "record")
    for reply in on.replies:
        if reply.metadata.message_type == protocol.SMASH:
            assert protocol.arrays_of(reply.content)["smashed"].dtype.kind == "i"
            assert "forward" not in protocol.numbers_of(reply.content)
    train(grid(factory), fronts="private", rounds=1)
    assert made_of[0].guarantee().epsilon is None


def test_the_cloud_classifies_for_devices_that_do_not_have_the_back() -> None:
    def factory(context: Context) -> Edge:
        return edge(int(context.node_config["partition-id"]), back=None)

    on = grid(factory)
    made, result = train(on, fronts="average")
    assert not result.evaluate_metrics_clientapp
    accuracies = made.classify(on)
    assert set(accuracies) == set(NAMES)
    assert min(accuracies.values()) > 0.6
    labels = [each.tensors[1].numpy() for each in TEST]
    for message in [*on.requests, *on.replies]:
        if message.metadata.message_type == protocol.FEATURES:
            arrays = protocol.arrays_of(message.content)
            found = [v for k, v in arrays.items() if k != "predictions"]
            assert not any(np.array_equal(v.ravel(), own) for v in found for own in labels)


def test_noise_is_secret_unless_it_is_asked_for() -> None:
    def sent(noise: str) -> list[np.ndarray]:
        def factory(context: Context) -> Edge:
            place = int(context.node_config["partition-id"])
            return edge(place, shield=BatchNormLaplace(epsilon=1.0), noise=noise)

        found = []
        for _ in range(2):
            on = grid(factory)
            train(on, rounds=1, fronts="frozen")
            first = next(r for r in on.replies if r.metadata.message_type == protocol.SMASH)
            found.append(protocol.arrays_of(first.content)["smashed"])
        return found

    assert np.array_equal(*sent("seeded"))
    assert not np.array_equal(*sent("secret"))


def terms(fronts: str) -> dict[str, Any]:
    """What a strategy says as an edge joins."""
    agreed = SplitTerms(fronts=fronts, batch_size=BATCH, wire="float32", seed=0, optimizer=None)
    return {"run": "run", "terms": agreed.model_dump_json(), "turn": -1}


def joined(vault: MemoryVault, fronts: str = "frozen", **changes: Any) -> Edge:
    made = edge(0, **changes)
    made.bind(vault)
    made.accept(terms(fronts))
    made.adopt({"front": torch.from_numpy(packing.pack(packing.state_tensors(front())))})
    return made


def test_another_shield_gets_other_noise_on_the_same_batch() -> None:
    """Else two releases, each scaled by its own ε, would give the activations away."""

    def noise(**settings: float) -> np.ndarray:
        vault = MemoryVault()
        vault.write(KEY, bytes(32))
        made = joined(vault, shield=ClipGaussian(**{"epsilon": 3.0, "delta": 1e-5, **settings}))
        smashed, _, _ = made.smash(0, 0, 1, 0)
        grid, shield = made.front.shield.grid, made.front.shield
        with torch.no_grad():
            plain = protect_without_noise(shield, made._activate(made._load(0, 0)[0]))
        return (smashed * grid.step - plain.numpy()).ravel()

    usual = noise()
    assert np.array_equal(noise(), usual)
    for settings in ({"epsilon": 6.0}, {"clip": 2.0}, {"delta": 1e-6}):
        assert abs(np.corrcoef(usual, noise(**settings))[0, 1]) < 0.3


def test_a_run_is_not_joined_again_with_another_shield(tmp_path: Path) -> None:
    def factory(epsilon: float, noise: str = "secret") -> Callable[[Context], Edge]:
        def make(context: Context) -> Edge:
            place = int(context.node_config["partition-id"])
            return edge(place, shield=ClipGaussian(epsilon=epsilon), noise=noise)

        return make

    settings = {"fronts": "frozen", "record": tmp_path / "run"}
    train(grid(factory(3.0)), rounds=1, **settings)
    for made in (factory(6.0), factory(3.0, "seeded")):
        with pytest.raises(TooFewParticipants, match="with another shield, or other noise, before"):
            train(grid(made), **settings)
    train(grid(factory(3.0)), rounds=2, **settings)


def test_terms_that_are_refused_do_not_come_into_force() -> None:
    made = joined(MemoryVault())
    made.smash(0, 0, 1, 0)
    with pytest.raises(RuntimeError, match="on other terms before"):
        made.accept(terms("average"))
    made.smash(0, 0, 1, 1)
    gradient = torch.ones(BATCH, *made.activation)
    with pytest.raises(RuntimeError, match="the front is frozen"):
        made.front_gradient(gradient, 1.0, 1)


def test_no_message_holds_a_private_front() -> None:
    made_of = {}

    def factory(context: Context) -> Edge:
        place = int(context.node_config["partition-id"])
        made_of[place] = usual_edge(context)
        return made_of[place]

    on = grid(factory)
    train(on, fronts="private")
    fronts = [each.front.layers.state_dict()["0.weight"].numpy() for each in made_of.values()]
    begun = front()[0].weight.detach().numpy()
    assert not any(np.array_equal(each, begun) for each in fronts)
    for message in [*on.requests, *on.replies]:
        records = message.content.array_records.values()
        raw = b"".join(array.data for record in records for array in record.values())
        assert not any(each.tobytes() in raw for each in fronts)


# --------------------------------------------------------------------- Flower's own start


@pytest.mark.parametrize("fronts", MODES)
def test_flowers_own_start_leads_to_the_same_arrays(fronts: str) -> None:
    """There a round is one exchange: a turn takes two, or one and one for each handing on."""
    turns = {"handoff": sum(-(-len(each) // BATCH) for each in TRAIN)}.get(fronts, 5)
    exchanges = {"average": 2 * turns, "handoff": turns + 3}.get(fronts, turns)
    _, ours = train(fronts=fronts)
    made = strategy(fronts=fronts)
    theirs = Strategy.start(made, grid(), made.initial_arrays(), num_rounds=ROUNDS * exchanges)
    assert same(ours.arrays, theirs.arrays)
    assert made.round == ROUNDS


def test_flowers_own_start_can_not_release_once() -> None:
    made = strategy(fronts="frozen", release="once")
    with pytest.raises(RequestError, match="call its own start"):
        Strategy.start(made, grid(), made.initial_arrays(), num_rounds=1)


def test_flowers_differential_privacy_wraps_it() -> None:
    """Its noise on the arrays is what the next exchange goes on with."""

    def last_front(noise_multiplier: float) -> np.ndarray:
        made, on = strategy(fronts="average", validate_every=0), grid()
        dp = DifferentialPrivacyClientSideFixedClipping(made, noise_multiplier, 1.0, len(NAMES))
        dp.start(on, made.initial_arrays(), num_rounds=6)
        sent = [m for m in on.requests if m.metadata.message_type == protocol.SMASH]
        return protocol.arrays_of(sent[-1].content)["front"]

    moved = np.abs(last_front(3.0) - last_front(0.0))
    assert moved.mean() > 0.2


def test_a_subclass_may_override_one_hook() -> None:
    class Halved(SplitLearning):
        """Moves half as far."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            before = values(self.arrays())
            arrays, metrics = super().aggregate_train(server_round, replies)
            after = values(arrays)
            half = {k: Array((before[k] + after[k]) / 2) for k in before}
            return ArrayRecord(half), metrics

    made = Halved(front(), back(), batch_size=50, optimizer=sgd, min_nodes=3)
    halved = values(made.start(grid(), num_rounds=1).arrays)
    _, full = train(rounds=1, batch_size=50)
    begun = back()[1].weight.detach().numpy()
    moved, whole = (
        np.abs(each["back.1.weight"] - begun).mean() for each in (halved, values(full.arrays))
    )
    assert 0.4 < moved / whole < 0.6


# ------------------------------------------------------------------------------- the record


def measurements(result: Any, fronts: str) -> list[dict[str, Any]]:
    """Return a run's rows; what is released once costs more bytes if it is asked for again."""
    return [row for row in result.rows if row["stage"] != "costs" or fronts != "once"]


@pytest.mark.parametrize("fronts", [*MODES, "once"])
def test_a_record_is_resumed_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fronts: str
) -> None:
    """Killed in the middle of an epoch, with a checkpoint after every turn or at rounds only."""
    settings: dict[str, Any] = {"fronts": fronts, "dropouts": 1, "min_nodes": 1}
    if fronts == "once":
        settings = {"fronts": "frozen", "release": "once", "min_nodes": 1}

    def seeded(context: Context) -> Edge:
        place = int(context.node_config["partition-id"])
        shield = BatchNormLaplace(epsilon=20.0)
        return edge(place, shield=shield, noise="seeded", optimizer=OptimizerConfig(name="adam"))

    asked = grid(seeded)
    # Records of one name: the length of a run's name counts in its bytes.
    _, whole = train(asked, **settings, record=tmp_path / "whole" / "run")
    count = len(asked.requests)
    for number, (stop, often) in enumerate(((10, True), (count // 2, True), (count - 3, False))):
        stopped = grid(seeded)
        stopped.stop_after = stop
        record = tmp_path / str(number) / "run"
        seconds = 0.0 if often else 1e9
        monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", seconds)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, **settings, record=record)
        _, resumed = train(grid(seeded), **settings, record=record)
        assert same(whole.arrays, resumed.arrays)
        assert measurements(resumed, fronts) == measurements(whole, fronts)
        assert json.loads((record / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("fronts", ["average", "handoff", "private"])
def test_a_device_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fronts: str
) -> None:
    """As on Flower's own engines: nothing but the vault outlives a message."""
    _, lasting = train(fronts=fronts)
    monkeypatch.setattr(OwnApp, "find", OwnApp._make)
    on = Recording(usual_edge, vault=str(tmp_path / "vault"))
    _, fresh = train(on, fronts=fronts)
    assert same(lasting.arrays, fresh.arrays)
    accuracies = [
        [row for row in result.rows if row["metric"] == "accuracy"] for result in (lasting, fresh)
    ]
    assert accuracies[0] == accuracies[1]
    assert list((tmp_path / "vault").rglob("*.safetensors"))


def test_a_private_front_that_was_lost_with_its_process_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = grid()
    stopped.stop_after = 25
    with pytest.raises(KeyboardInterrupt):
        train(stopped, fronts="private", record=tmp_path / "run")
    monkeypatch.setattr("pudica.clients.runtime.vault._in_memory", {})
    train(fronts="private", record=tmp_path / "run")
    events = (tmp_path / "run" / "events.log").read_text()
    assert "adam lost its front, and begins anew with the first" in events


def test_a_front_stays_where_it_is_if_who_comes_next_is_away() -> None:
    """What a device learnt is not thrown away because the one after it does not answer."""
    made = strategy(fronts="handoff", min_nodes=2, validate_every=0)
    on = grid()
    made.start(on, num_rounds=1)
    events: list[str] = []
    made.recorder.event = events.append  # type: ignore[method-assign]
    made.cohort.nodes = {n: node for n, node in made.cohort.nodes.items() if n != "mia"}
    on.requests.clear()
    made.start(on, num_rounds=2)
    kinds = [message.metadata.message_type for message in on.requests]
    assert kinds.count(protocol.FRONT) == 2  # from zoe for adam, and in the end
    assert not [event for event in events if "did not hand on" in event]


def test_a_front_whose_holder_is_away_goes_on_as_it_was_given() -> None:
    events: list[str] = []

    class Left(SplitLearning):
        """Goes on without adam as soon as it has the front, as a resumed run would."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            result = super().aggregate_train(server_round, replies)
            self.recorder.event = events.append  # type: ignore[method-assign]
            if self.fronts.holder == "adam":
                self.cohort.nodes.pop("adam", None)
            return result

    made = Left(front(), back(), fronts="handoff", batch_size=BATCH, optimizer=sgd, min_nodes=2)
    made.start(grid(), num_rounds=2)
    assert events == ["adam did not hand on the front: what it learnt since it got it is lost"]
    assert made.round == 2


@pytest.mark.parametrize("fronts", [*MODES, "once"])
def test_to_start_again_goes_on_where_it_ended(fronts: str) -> None:
    settings = {"fronts": fronts}
    if fronts == "once":
        settings = {"fronts": "frozen", "release": "once"}
    on, made = grid(), strategy(**settings)
    made.start(on, num_rounds=2)
    events: list[str] = []
    made.recorder.event = events.append  # type: ignore[method-assign]
    twice = made.start(on, num_rounds=4)
    _, at_once = train(rounds=4, **settings)
    assert same(twice.arrays, at_once.arrays)
    assert twice.evaluate_metrics_clientapp[4] == at_once.evaluate_metrics_clientapp[4]
    assert not events


def test_without_a_record_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    train(fronts="private", rounds=1)
    train(fronts="frozen", release="once", rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_other_settings_or_another_model_is_not_resumed(tmp_path: Path) -> None:
    train(record=tmp_path / "run", rounds=1)
    for other in ({"batch_size": 4}, {"fronts": "private"}):
        with pytest.raises(RequestError, match="already holds the run of another experiment"):
            train(record=tmp_path / "run", rounds=1, **other)
    with pytest.raises(RequestError, match="already holds the run of another experiment"):
        SplitLearning(
            front(), back(5), batch_size=BATCH, optimizer=sgd, min_nodes=3, record=tmp_path / "run"
        ).start(grid(), num_rounds=1)


# ------------------------------------------------------------------------- faults, bad input


class Broken(Dataset):
    """Works while it is tried, and then no more."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return len(TRAIN[1])

    def __getitem__(self, row: int) -> Any:
        self.asked += 1
        if self.asked > 12:
            raise ValueError("no more")
        return TRAIN[1][row]


def other(**changes: Any) -> Callable[[Context], Any]:
    """Return a factory whose second node differs."""

    def factory(context: Context) -> Any:
        place = int(context.node_config["partition-id"])
        if place != 1:
            return edge(place)
        if "raises" in changes:
            raise changes["raises"]
        return changes["instead"] if "instead" in changes else edge(place, **changes)

    return factory


def test_a_device_that_raises_drops_out_and_the_rest_go_on() -> None:
    _, result = train(grid(other(train=Broken())), min_nodes=2, fronts="private")
    frame = result.frame()
    assert set(frame[frame.metric == "dropouts"].node) == {"adam"}
    with pytest.raises(TooFewParticipants, match="adam: ValueError: no more"):
        train(grid(other(train=Broken())), min_nodes=3, fronts="private")


def test_a_shield_with_a_penalty_needs_fronts_that_learn() -> None:
    with pytest.raises(TooFewParticipants, match="RequestError: shield: NoPeek adds to the loss"):
        train(grid(other(shield=NoPeek())), fronts="frozen")
    fronts = [
        train(grid(other(shield=NoPeek(weight=weight))), fronts="average")[1].arrays
        for weight in (0.0, 0.2)
    ]
    assert not same(*fronts)


def wide() -> TensorDataset:
    x, y = TRAIN[1].tensors
    return TensorDataset(x.repeat(1, 1, 2, 1), y)


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (other(name="zoe"), "another node is called zoe"),
        (other(back=back(5)), "its data have 5 classes, the back tells 3 apart"),
        (other(classes=7, back=None), "its data have 7 classes"),
        (
            other(train=wide(), back=None),
            "it holds images of 1x8x4, pixels from 0 to 255, most images of 1x4x4, pixels from",
        ),
        (other(raises=OSError("no such disk")), "OSError: no such disk"),
        (other(instead=front()), "returned a Sequential; it must return a Edge"),
        (other(train=[]), "train: holds no examples"),
        (other(train=[torch.zeros(SHAPE)]), "must yield pairs"),
        (
            other(shield=ClipGaussian(epsilon=1.0).bind((3, 4, 4), 2)),
            f"bound to batches of at most 2, the strategy's have {BATCH}",
        ),
        (
            other(shield=NoPeek(), front=nn.Identity(), back=None),
            "NoPeek adds to the loss of a front, and this device's learns nothing",
        ),
        (
            other(front=nn.Sequential(nn.Conv2d(1, 3, 5, padding=2), nn.ReLU())),
            "the strategy's front has 30 values, this device's 78; give both the same module",
        ),
    ],
)
def test_who_does_not_fit_is_left_out_and_named(
    factory: Callable[[Context], Any], why: str, tmp_path: Path
) -> None:
    train(grid(factory), min_nodes=2, rounds=1, record=tmp_path / "run")
    assert why in (tmp_path / "run" / "events.log").read_text()


class Watched(nn.Module):
    """Notes on what it is called; looks at values, if it is told to."""

    seen: ClassVar[list[tuple[str, tuple[int, ...]]]] = []

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.looks = looks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.device.type, tuple(x.shape)))
        return -x if self.looks and x.sum() < 0 else x


class Boastful(Edge):
    """Says that its images are very large."""

    def describe_data(self) -> dict[str, int | str]:
        return {**super().describe_data(), "shape": "1x10000x10000"}


def test_the_model_is_tried_once_and_not_on_what_a_single_device_claims() -> None:
    boastful = Boastful(front(), TRAIN[1], optimizer=sgd, name="adam")
    Watched.seen.clear()
    watched = nn.Sequential(*front(), Watched())
    made = SplitLearning(watched, back(), optimizer=sgd, batch_size=BATCH, min_nodes=2)
    made.start(grid(other(instead=boastful)), num_rounds=1)
    assert set(made.devices.members) == {"zoe", "mia"}
    assert {member.classes for member in made.devices.members.values()} == {CLASSES}
    assert Watched.seen == [("meta", (2, 3, 4, 4))]


def test_a_model_that_looks_at_values_is_tried_on_some() -> None:
    Watched.seen.clear()
    assert try_model(nn.Sequential(front(), Watched(True)), back(), SHAPE)[1] == CLASSES
    assert [device for device, _ in Watched.seen] == ["meta", "cpu"]
    Watched.seen.clear()
    with pytest.raises(RequestError, match="back: fails on"):
        try_model(nn.Sequential(front(), Watched()), back(), (1, 10_000, 10_000))
    assert [device for device, _ in Watched.seen] == ["meta"]


def test_a_function_as_optimiser_must_be_there_where_fronts_learn() -> None:
    with pytest.raises(TooFewParticipants, match=r"RequestError: optimizer: the strategy's"):
        train(grid(other(optimizer=None)), fronts="private")
    settings = OptimizerConfig(learning_rate=0.2, momentum=0.5)
    _, result = train(grid(other(optimizer=None)), fronts="private", front_optimizer=settings)
    assert result.evaluate_metrics_clientapp[ROUNDS]["accuracy-plain"] > 0.6


def test_too_few_nodes_are_waited_for_and_named() -> None:
    with pytest.raises(TooFewParticipants, match=r"4 nodes are needed, 3 were there after 0\.3 s"):
        strategy(min_nodes=4).start(grid(), num_rounds=1, timeout=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("back.1.bias"), "'back.1.bias' is missing"),
        (lambda found: found.update({"middle.1": np.zeros(3)}), "'middle.1' is not of this model"),
        (
            lambda found: found.update({"front.0.bias": np.zeros(4)}),
            r"'front.0.bias' of shape \(4,\), the model's is \(3,\)",
        ),
    ],
)
def test_initial_arrays_that_do_not_fit_are_named(
    change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    found = values(strategy().initial_arrays())
    change(found)
    record = ArrayRecord({k: Array(np.asarray(v, np.float32)) for k, v in found.items()})
    with pytest.raises(RequestError, match=message):
        strategy().start(grid(), record, num_rounds=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fronts": "frozn"}, "unknown fronts 'frozn'. Did you mean 'frozen'"),
        ({"batch_size": 0}, "SplitLearning: batch_size = 0"),
        ({"batches": 3}, "unknown argument 'batches'"),
        ({"release": "once"}, "release: 'once' needs front: frozen"),
        ({"fit": "means"}, "fit: 'means' needs release: once"),
        ({"epochs": 3}, "unknown argument 'epochs'"),
    ],
)
def test_settings_that_do_not_hold_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        strategy(**settings)


def test_a_model_whose_output_is_no_logits_is_refused() -> None:
    made = SplitLearning(front(), nn.Identity(), min_nodes=3)
    with pytest.raises(TooFewParticipants, match="back: must map activations of 2x3x4x4 to"):
        made.start(grid(other()), num_rounds=1)


def test_fronts_that_differ_are_named() -> None:
    wider = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    made = SplitLearning(wider, back(), min_nodes=3)
    with pytest.raises(TooFewParticipants, match=r"front has 42 values, this device's 30; give"):
        made.start(grid(), num_rounds=1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"back": nn.Identity()}, RequestError, "to logits of 2xclasses, got 2x3x4x4"),
        ({"front": nn.Linear(3, 3)}, RequestError, "front: fails on"),
        (
            {"shield": ClipGaussian(epsilon=1.0).bind((2, 2), 8)},
            RequestError,
            r"bound to examples of \(2, 2\), the front's activations are \(3, 4, 4\)",
        ),
        ({"shield": nn.Dropout()}, RequestError, "shield: must be one of .*, is Dropout"),
        ({"noise": "loud"}, RequestError, "noise: must be 'secret' or 'seeded'"),
        ({"train": 3}, DataError, "must be a map-style data set"),
        ({"test": [(torch.zeros(SHAPE), "cat")]}, DataError, "labels must be whole numbers"),
    ],
)
def test_an_edge_that_makes_no_sense_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        edge(0, **changes)
