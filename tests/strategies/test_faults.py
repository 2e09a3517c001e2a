"""A node's disk, its vault and its slowness: whose fault it is is said, and the others go on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from competition_helpers import ListeningGrid, rows_of, tiny
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

import pudica.clients.app
import pudica.clients.runtime.vault
from pudica.clients import protocol
from pudica.clients.runtime.idempotency import answer_once
from pudica.clients.runtime.vault import Vault
from pudica.models.files import write_atomically

Compete = Callable[..., ListeningGrid]


class Deployed:
    """Answers as deployed nodes do: by a fresh process each time, and with Flower's errors.

    Parameters
    ----------
    before : callable
        Called with a message's kind and the node's number before it is answered.
    """

    def __init__(self, before: Callable[[str, int], None]) -> None:
        self.before = before

    def __call__(self, message: Message, context: Context) -> Message:
        pudica.clients.app._nodes.clear()
        self.before(message.metadata.message_type, int(context.node_config["partition-id"]))
        try:
            return pudica.clients.app.app(message, context)
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            raised = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            return Message(raised, reply_to=message)


def events(tmp_path: Path) -> str:
    return (tmp_path / "run" / "events.log").read_text()


def test_a_damaged_vault_is_named_to_the_organiser_and_the_others_go_on(
    compete: Compete, tmp_path: Path
) -> None:
    damaged = tmp_path / "run/vault/run/node-1/model-honest.safetensors"

    def damage(kind: str, node: int) -> None:
        if (kind, node) == (protocol.NOISY, 1):
            data = bytearray(damaged.read_bytes())
            data[-1] ^= 1
            damaged.write_bytes(data)

    compete(app=Deployed(damage))
    said = "dropout: MLP: RuntimeError: 'model-honest.safetensors' in this node's vault is damaged"
    assert said in events(tmp_path)
    assert "dropout: Softmax" not in events(tmp_path)
    assert any('"node": "Softmax"' in row for row in rows_of(tmp_path / "run"))


def test_a_node_whose_disk_is_full_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, full = Vault(tmp_path / "vault" / "run" / "ann"), [True]
    vault.write("model", b"as it was")

    def write(path: Path, data: bytes, mode: int = 0o644, durable: bool = False) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data, mode, durable)

    def trained() -> RecordDict:
        vault.write("model", b"trained")
        return protocol.reply({"loss": 0.5})

    monkeypatch.setattr(pudica.clients.runtime.vault, "write_atomically", write)
    with pytest.raises(OSError, match="no room on this node's disk for 'model' in its vault"):
        answer_once(vault, "one", trained)
    assert vault.read("model") == b"as it was"
    full.clear()
    assert protocol.numbers_of(answer_once(vault, "one", trained)) == {"loss": 0.5}
    assert vault.read("model") == b"trained"


def test_the_organiser_is_told_of_a_full_disk(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others go on, and so does the node once there is room."""
    turn: list[tuple[str, int]] = []

    def write(path: Path, data: bytes, mode: int = 0o644, durable: bool = False) -> None:
        if turn[-1] == (protocol.GRADIENT, 1) and turn.count(turn[-1]) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data, mode, durable)

    monkeypatch.setattr(pudica.clients.runtime.vault, "write_atomically", write)
    compete("client.patience=5", app=Deployed(lambda kind, node: turn.append((kind, node))))
    assert events(tmp_path).count("dropout: MLP: OSError: [Errno 28] no room on this node's") == 1
    assert turn.count((protocol.GRADIENT, 1)) == turn.count((protocol.GRADIENT, 0)) > 1


def test_a_node_slower_than_the_deadline_is_left_out_and_said(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' table is the one that they make without it."""
    silent: list[Message] = []

    class Slow(ListeningGrid):
        def _dispatch(self, message: Message, identifier: str) -> None:
            slow = message.metadata.message_type == protocol.GRADIENT
            if slow and message.metadata.dst_node_id == 3:
                silent.append(message)
            else:
                super()._dispatch(message, identifier)

    monkeypatch.setattr("pudica.strategies.core.reliable_grid.GIVE_UP_AFTER", 1)
    compete("client.timeout=3", "client.patience=60", kind=Slow)
    assert "dropout: MLP: no answer within 3 s" in events(tmp_path)
    assert len(silent) == 2  # once an epoch
    rows = rows_of(tmp_path / "run")
    for name in tiny().names():
        assert any(f'"node": "{name}"' in row and "validation_accuracy" in row for row in rows)
