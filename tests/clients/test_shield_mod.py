"""Shields as Flower client mods: what leaves is protected, what comes back is restored once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from pudica.clients.runtime.lifetime import Memory, remember_in
from pudica.clients.shields import (
    ClipGaussian,
    Counts,
    Mixing,
    NoPeek,
    NormGaussian,
    Shield,
    ShieldMod,
)
from pudica.models.errors import RequestError

X = np.arange(40, dtype=np.float32).reshape(8, 5)


def context_of(node: int, **config: str) -> Context:
    return Context(1, node, {"partition-id": node - 2}, RecordDict(), dict(config))


def message_to(node: int, content: RecordDict, group: str = "") -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="1",
        src_node_id=1,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=3600,
        message_type="query.features",
    )
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


class Node:
    """An app behind a mod, and what it was given."""

    def __init__(self, place: Path, shield: Shield, replies: Iterable[RecordDict] = (), **names):
        self.context = context_of(2, vault=str(place))
        self.place = place
        self.shield, self.names = shield, names
        self.received: list[RecordDict] = []
        self.replies = iter(replies)

    def ask(self, content: RecordDict | None = None, group: str = "") -> RecordDict:
        """Send a message to the app, made anew as in a fresh process."""
        app = ClientApp()

        @app.query("features", mods=[ShieldMod(self.shield, **self.names)])
        def answer(message: Message, context: Context) -> Message:
            self.received.append(message.content)
            return Message(next(self.replies, arrays(features=X)), reply_to=message)

        return app(message_to(2, content or RecordDict(), group), self.context).content

    def kept(self) -> list[str]:
        return [path.name for path in self.place.rglob("secret.safetensors")]


def arrays(**values: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in values.items()})})


def array(content: RecordDict, name: str = "features") -> np.ndarray:
    values: np.ndarray = content.array_records["arrays"][name].numpy()
    return values


def mixing() -> Mixing:
    return Mixing(group=4)


def test_noise_on_a_grid_travels_as_integers(tmp_path: Path) -> None:
    shield = ClipGaussian(epsilon=3, clip=1.0)
    reply = RecordDict(
        {
            "arrays": ArrayRecord({"other": Array(X), "features": Array(X)}),
            "metrics": MetricRecord({"num-examples": 8}),
        }
    )
    sent = Node(tmp_path, shield, [reply]).ask()
    assert array(sent).dtype == np.int16
    assert shield.grid
    values = shield.grid.to_values(array(sent))
    assert float((values - shield.bounded(torch.from_numpy(X))).abs().max()) < 10 * shield.scale
    assert list(sent["arrays"]) == ["other", "features"]
    assert np.array_equal(array(sent, "other"), X)
    assert sent["metrics"] == MetricRecord({"num-examples": 8})
    # The app's own reply is left as it was: it may be kept, and sent again.
    assert np.array_equal(array(reply), X)


def test_floats_travel_as_float32_and_fresh_noise_is_drawn(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 3, 2, 2))
    node = Node(tmp_path, NormGaussian(epsilon=6), [arrays(features=images) for _ in range(2)])
    first, second = array(node.ask()), array(node.ask())
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)


def test_what_comes_back_is_restored_once(tmp_path: Path) -> None:
    node = Node(tmp_path, mixing(), [arrays(features=X), RecordDict()])
    mixed = array(node.ask())
    distances = torch.cdist(torch.from_numpy(mixed), torch.from_numpy(X))
    assert float(distances.min()) > 1e-3
    assert node.kept() == ["secret.safetensors"]
    back = arrays(outputs=3 * mixed, rest=X)
    back["config"] = ConfigRecord({"round": 2})
    assert len(node.ask(back)) == 0
    np.testing.assert_allclose(array(node.received[-1], "outputs"), 3 * X, atol=1e-3)
    assert node.received[-1]["config"] == {"round": 2}
    # The message that came is left alone: others of this process may have been sent the same.
    assert np.array_equal(array(back, "outputs"), 3 * mixed)
    assert node.kept() == []
    with pytest.raises(RequestError, match="no 'features' is out that it could be of"):
        node.ask(back)


def test_each_reply_has_a_secret_of_its_own(tmp_path: Path) -> None:
    node = Node(tmp_path, mixing())
    first = array(node.ask())
    second = array(node.ask(arrays(outputs=first)))
    np.testing.assert_allclose(array(node.received[-1], "outputs"), X, atol=1e-4)
    assert not np.allclose(first, second)
    third = array(node.ask())  # nothing came back: the second's secret is gone
    node.ask(arrays(outputs=second))
    assert not np.allclose(array(node.received[-1], "outputs"), X, atol=1)
    assert third.shape == X.shape


def test_a_secret_does_not_survive_a_failure(tmp_path: Path) -> None:
    node = Node(tmp_path, mixing())
    mixed = array(node.ask())
    with pytest.raises(ValueError, match="4 rows came back of 8"):
        node.ask(arrays(outputs=mixed[:4]))
    with pytest.raises(RequestError, match="no 'features' is out"):
        node.ask(arrays(outputs=mixed))


def test_secrets_are_in_no_message_and_not_in_the_state(tmp_path: Path) -> None:
    node = Node(tmp_path, mixing())
    sent = node.ask()
    assert list(sent) == ["arrays"]
    assert list(sent["arrays"]) == ["features"]
    assert len(node.context.state) == 0
    (kept,) = tmp_path.rglob("secret.safetensors")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_repeated_message_gets_the_same_reply(tmp_path: Path) -> None:
    node = Node(tmp_path, ClipGaussian(epsilon=1))
    first = array(node.ask(group="pudica-1"))
    assert np.array_equal(array(node.ask(group="pudica-1")), first)
    assert len(node.received) == 1
    assert not np.array_equal(array(node.ask(group="pudica-2")), first)


def test_a_group_that_is_no_exchange_makes_no_repetition(tmp_path: Path) -> None:
    """Flower has a round's number there."""
    node = Node(tmp_path, ClipGaussian(epsilon=1))
    assert not np.array_equal(array(node.ask(group="1")), array(node.ask(group="1")))
    assert len(node.received) == 2


def test_nodes_of_one_process_do_not_share_secrets() -> None:
    shield, app, memory = mixing(), ClientApp(), Memory()
    received: dict[int, np.ndarray] = {}

    @app.query("features", mods=[ShieldMod(shield)])
    def answer(message: Message, context: Context) -> Message:
        if "arrays" in message.content:
            received[context.node_id] = array(message.content, "outputs")
        return Message(arrays(features=X * context.node_id), reply_to=message)

    def ask(node: int, content: RecordDict) -> RecordDict:
        with remember_in(memory):
            return app(message_to(node, content), context_of(node)).content

    mixed = {node: array(ask(node, RecordDict())) for node in (2, 3)}
    for node, outputs in mixed.items():
        ask(node, arrays(outputs=outputs))
    for node, restored in received.items():
        np.testing.assert_allclose(restored, X * node, atol=1e-3)


# ------------------------------------------------------------------------------- bad input


def test_an_array_under_another_name_does_not_leave(tmp_path: Path) -> None:
    node = Node(tmp_path, Counts(epsilon=1), [arrays(feature=X, labels=X)])
    with pytest.raises(RequestError, match="no array 'features' to protect, but feature, labels"):
        node.ask()


def test_a_reply_of_another_shape_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path, ClipGaussian(epsilon=1), [arrays(features=X), arrays(features=X[:, :4])])
    node.ask()
    with pytest.raises(RequestError, match=r"got 8 examples of \(4,\), it is bound .* \(5,\)"):
        node.ask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip-gaussian",), "shield must be a Shield of pudica.clients.shields, is str"),
        ((NoPeek(),), "NoPeek adds to the loss of a front, and a mod trains none"),
        ((mixing(), ""), "array must be the name of an array, is ''"),
        ((mixing(), "features", None), "restored must be the name of an array, is None"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ShieldMod(*arguments)
