"""Flower's own strategies over owners that disguise their images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients import Owner
from pudica.clients.data import DataError
from pudica.clients.runtime.vault import MemoryVault, Vault
from pudica.clients.shields import Disguise
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError
from pudica.models.training import TrainingConfig
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context
from pudica.strategies import ReliableGrid

SHAPE, CLASSES, NODES = (1, 8, 8), 3, 3
NOTATION = "MAT(256)+MMT(10)"
SHARED = Disguise(Key.from_seed(NOTATION, SHAPE, 0))


def examples(count: int, seed: int = 0) -> TensorDataset:
    """Classes that differ in which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = torch.randint(0, 120, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    for row in range(count):
        x[row, 0, 2 * y[row] : 2 * y[row] + 2] += 100
    return TensorDataset(x, y)


TRAIN, TEST = examples(90), examples(60, 1)


def network(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def share(place: int) -> TensorDataset:
    x, y = TRAIN.tensors
    return TensorDataset(x[place::NODES], y[place::NODES])


def factory(**settings: Any) -> Callable[[Context], Owner]:
    def owner(context: Context) -> Owner:
        place = int(context.node_config["partition-id"])
        usual = {"disguise": SHARED, "training": TrainingConfig(batch_size=16, gamma=1.0)}
        own = {key: value(place) if callable(value) else value for key, value in settings.items()}
        return Owner(network(), share(place), TEST, **{**usual, **own})

    return owner


class Recording(InProcessGrid):
    """Keeps what nodes reply."""

    def __init__(self, made: Callable[[Context], Owner], nodes: int = NODES, **config: str) -> None:
        super().__init__(Owner.app(made), nodes, config)
        build_server_context({})
        self.replies: list[Message] = []

    def _answer(self, message: Message) -> Message:
        self.replies.append(super()._answer(message))
        return self.replies[-1]


def strategy(kind: type[FedAvg] = FedAvg, **more: Any) -> FedAvg:
    return kind(min_train_nodes=NODES, min_evaluate_nodes=NODES, min_available_nodes=NODES, **more)


def run(grid: Any, kind: type[FedAvg] = FedAvg, rounds: int = 4, **more: Any) -> Any:
    return strategy(kind, **more).start(
        grid, ArrayRecord(network().state_dict()), num_rounds=rounds
    )


@pytest.mark.parametrize(("kind", "more"), [(FedAvg, {}), (FedAdam, {"eta": 0.01})])
def test_a_stock_strategy_learns_on_disguised_images(kind: type[FedAvg], more: Any) -> None:
    grid = Recording(factory())
    result = run(grid, kind, 8, **more)
    last = result.evaluate_metrics_clientapp[8]
    assert last["accuracy"] > 0.9
    assert last["loss"] < result.evaluate_metrics_clientapp[1]["loss"]
    assert result.train_metrics_clientapp[8]["loss"] < result.train_metrics_clientapp[1]["loss"]
    owner = Owner(network(), TRAIN, TEST, disguise=SHARED)
    assert owner.evaluate(owner.load(result.arrays))[1] > 0.9


def test_replies_hold_the_model_and_metrics_and_nothing_else() -> None:
    grid = Recording(factory())
    run(grid, rounds=1)
    kinds = [m.metadata.message_type for m in grid.replies]
    assert kinds == ["train"] * NODES + ["evaluate"] * NODES
    own = network().state_dict()
    for message in grid.replies[:NODES]:
        assert set(message.content) == {"arrays", "metrics"}
        assert {k: tuple(a.shape) for k, a in message.content["arrays"].items()} == {
            k: tuple(t.shape) for k, t in own.items()
        }
        assert set(message.content["metrics"]) == {"num-examples", "loss"}
        assert message.content["metrics"]["num-examples"] == 30
    for message in grid.replies[NODES:]:
        assert set(message.content) == {"metrics"}
        assert set(message.content["metrics"]) == {"num-examples", "loss", "accuracy"}


def test_training_is_what_it_would_be_on_images_disguised_beforehand() -> None:
    owner = Owner(network(), share(0), disguise=SHARED, local_epochs=2)
    images = owner.normalised_images("train")
    keyed = SHARED.keyed
    values = keyed.protect(share(0).tensors[0]).double()
    values = (values - keyed.span.low) / (keyed.span.high - keyed.span.low)
    wanted = (values - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(images.batch(slice(None))[0].double(), wanted, atol=1e-4, rtol=1e-4)
    model = network()
    losses = owner.train_on(model, images, 0, {}).losses
    assert len(losses) == 2
    again = network()
    assert owner.train_on(again, images, 0, {}).losses == losses
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_own_optimizer_and_normalisation_are_used() -> None:
    rates: list[float] = []

    def adam(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=0.003)
        optimizer.register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    owner = Owner(network(), TRAIN, disguise=SHARED, optimizer=adam, normalisation=([0.25], [0.5]))
    training = owner.train_on(network(), owner.normalised_images("train"), 3, {})
    assert isinstance(training.optimizer, torch.optim.Adam)
    assert set(rates) == {0.003}
    assert owner.normalisation[0].flatten().tolist() == [0.25]


def test_the_round_decides_where_in_the_schedule_it_is() -> None:
    owner = Owner(network(), TRAIN, training=TrainingConfig(schedule="cosine", epochs=4))
    images = owner.normalised_images("train")
    trained = [owner.train_on(network(), images, turn, {}) for turn in range(3)]
    rates = [training.optimizer.param_groups[0]["lr"] for training in trained]
    assert rates[0] == 0.01
    assert rates[0] > rates[1] > rates[2]


def test_a_fresh_key_is_drawn_once_and_stays_in_the_vault(tmp_path: Path) -> None:
    unbound = Disguise(NOTATION)

    def made() -> Owner:
        owner = Owner(network(), TRAIN, disguise=unbound)
        owner.bind(Vault(tmp_path / "run" / "node"))
        return owner

    first, again = made(), made()
    assert first.disguise
    assert again.disguise
    assert first.disguise.key.fingerprint == again.disguise.key.fingerprint
    # What others share is not bound to it, and another node has another key.
    assert not unbound.has_key
    other = Owner(network(), TRAIN, disguise=unbound)
    other.bind(MemoryVault())
    assert other.disguise
    assert other.disguise.key.fingerprint != first.disguise.key.fingerprint
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*safetensors"))


def test_no_image_and_no_key_is_in_a_message(tmp_path: Path) -> None:
    grid = Recording(factory(disguise=lambda _: Disguise(NOTATION)), vault=str(tmp_path))
    run(grid, rounds=2)
    keys = list(tmp_path.rglob("disguise-key.safetensors"))
    assert len(keys) == NODES
    sent = b"".join(
        array.data
        for message in grid.replies
        for record in message.content.array_records.values()
        for array in record.values()
    )
    images = TRAIN.tensors[0].numpy()
    hidden = KeyedDisguise(SHARED.key).protect(TRAIN.tensors[0]).numpy()
    for secret in (images[0].tobytes(), hidden[0].tobytes(), keys[0].read_bytes()[-64:]):
        assert secret not in sent
    assert all(len(context.state) == 0 for context in grid._contexts.values())


def test_a_reliable_grid_leads_to_the_same_arrays() -> None:
    plain = run(Recording(factory()), rounds=2)
    reliable = run(ReliableGrid(Recording(factory()), patience=5), rounds=2)
    for name in plain.arrays:
        # Flower draws the order in which replies are summed.
        np.testing.assert_allclose(
            plain.arrays[name].numpy(), reliable.arrays[name].numpy(), atol=1e-5
        )


@pytest.mark.parametrize("group", ["1", "pudica-1"])
def test_requests_of_two_kinds_in_one_group_are_two(group: str) -> None:
    grid = Recording(factory(), nodes=1)
    for kind in ("train", "evaluate"):
        content = RecordDict({"arrays": ArrayRecord(network().state_dict())})
        grid.send_and_receive([Message(content, 2, kind, group_id=group)])
    assert ["accuracy" in m.content["metrics"] for m in grid.replies] == [False, True]


def test_a_setting_that_is_called_run_is_no_name_of_one() -> None:
    grid = Recording(factory(), nodes=1)
    content = RecordDict({"arrays": ArrayRecord(network().state_dict())})
    content["config"] = ConfigRecord({"run": "exp/1"})
    grid.send_and_receive([Message(content, 2, "train", group_id="pudica-1")])
    assert not grid.replies[0].has_error()


# ------------------------------------------------------------------------------- bad input


def test_who_can_not_evaluate_says_so_and_the_others_go_on(caplog: Any) -> None:
    def owner(context: Context) -> Owner:
        place = int(context.node_config["partition-id"])
        return Owner(network(), share(place), TEST if place else None, disguise=SHARED)

    grid = Recording(owner)
    result = run(grid, rounds=1)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] >= 0
    reasons = [m.error.reason for m in grid.replies if m.has_error()]
    assert len(reasons) == 1
    assert "this owner has no test images; Owner(..., test=…), or fraction_evaluate=0" in reasons[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": np.zeros(3)}, "arrays: weight are none of this model's, and 0.bias, "),
        ({"0.bias": np.zeros(9)}, r"'0.bias' has the shape \(9,\), this model's is \(8,\)"),
    ],
)
def test_arrays_of_another_model_are_named(arrays: dict[str, Any], message: str) -> None:
    own = network().state_dict()
    given = {**own, **arrays} if "0.bias" in arrays else arrays
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in given.items()})
    with pytest.raises(RequestError, match=message):
        Owner(network(), TRAIN).load(record)


def test_a_factory_that_returns_something_else_is_named() -> None:
    grid = Recording(lambda _: network())  # type: ignore[arg-type, return-value]
    run(grid, rounds=1)
    reasons = [m.error.reason for m in grid.replies if m.has_error()]
    assert "returned a Sequential; it must return a Owner" in reasons[0]


@pytest.mark.parametrize(
    ("train", "settings", "error", "message"),
    [
        (3, {}, DataError, "train: must be a map-style data set"),
        ([], {}, DataError, "train: holds no examples"),
        ([(torch.zeros(SHAPE), 1)], {}, DataError, r"must be uint8 tensors .*PILToTensor\(\)"),
        ([torch.zeros(SHAPE)], {}, DataError, "train: must yield pairs"),
        (
            [(torch.zeros(s, dtype=torch.uint8), 0) for s in (SHAPE, (1, 9, 9))],
            {},
            DataError,
            "train: images of different shapes",
        ),
        (TRAIN, {"test": examples(3).tensors[0][:, :, :4]}, DataError, "test: must yield pairs"),
        (
            TRAIN,
            {
                "test": TensorDataset(
                    torch.zeros((2, 1, 9, 9), dtype=torch.uint8), torch.zeros(2).long()
                )
            },
            RequestError,
            r"test: images are \(1, 9, 9\), those of train are \(1, 8, 8\)",
        ),
        (
            TRAIN,
            {"disguise": Disguise(Key.from_seed(NOTATION, (3, 8, 8), 0))},
            RequestError,
            "images are 1x8x8, the key [0-9a-f]{16} is for 3x8x8",
        ),
        (TRAIN, {"local_epochs": 0}, RequestError, "local_epochs: must be 1 or more, is 0"),
        (
            TRAIN,
            {"normalisation": ([0.5, 0.5], [1.0, 1.0])},
            RequestError,
            "normalisation: must be means and standard deviations above 0 of 1 channels",
        ),
        (TRAIN, {"normalisation": ([0.5], [0.0])}, RequestError, "normalisation: must be"),
        (TRAIN, {"name": "../x"}, RequestError, "x"),
    ],
)
def test_wrong_arguments_are_named(
    train: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Owner(network(), train, **settings)


def test_a_model_that_is_no_classifier_of_these_images_is_refused() -> None:
    with pytest.raises(RequestError, match="tells 2 classes apart, but a label is 2"):
        Owner(network(2), TensorDataset(TRAIN.tensors[0][2:], TRAIN.tensors[1][2:]))
    with pytest.raises(RequestError, match="must map images of 2x1x8x8 to logits"):
        Owner(nn.Identity(), TRAIN)
