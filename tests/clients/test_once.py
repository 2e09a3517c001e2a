"""What a node was asked is done once, and said as often as it is asked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from forking import fork, wait_for

from pudica.clients import protocol
from pudica.clients.runtime.idempotency import answer_once
from pudica.clients.runtime.vault import Vault


class Counter:
    """Answers with how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> protocol.RecordDict:
        self.times += 1
        return protocol.reply({"times": self.times}, half=np.full(3, 0.5, np.float16))


def test_a_request_that_comes_again_gets_the_same_answer(tmp_path: Path) -> None:
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()
    first = answer_once(vault, "one", counter)
    again = answer_once(Vault(vault.root), "one", counter)
    assert counter.times == 1
    assert protocol.numbers_of(first) == protocol.numbers_of(again) == {"times": 1}
    half = protocol.arrays_of(again)["half"]
    assert half.dtype == np.float16
    assert half.tolist() == [0.5] * 3
    assert protocol.numbers_of(answer_once(vault, "two", counter)) == {"times": 2}
    assert [path.stat().st_mode & 0o077 for path in vault.root.glob("reply-*")] == [0, 0]


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()

    def fails() -> protocol.RecordDict:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        answer_once(vault, "one", fails)
    assert protocol.numbers_of(answer_once(vault, "one", counter)) == {"times": 1}


def test_killed_once_an_answer_is_kept_a_node_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()

    def killed(self: Vault, name: str, data: bytes, durable: bool = False) -> None:
        self._write(name, data, durable)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        answer_once(vault, "one", counter)
    monkeypatch.undo()
    assert protocol.numbers_of(answer_once(vault, "one", counter)) == {"times": 1}
    assert counter.times == 1


def test_while_another_process_is_at_work_a_node_is_busy(tmp_path: Path) -> None:
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()
    said, says = os.pipe()

    def hold() -> None:
        with Vault(vault.root).alone() as alone:
            os.write(says, str(alone).encode())
            signal.pause()

    other = fork(hold)
    try:
        assert os.read(said, 4) == b"True"
        assert protocol.is_busy(answer_once(vault, "one", counter))
        assert counter.times == 0
    finally:
        os.kill(other, signal.SIGKILL)
        wait_for(other)
    # A lock is gone with its process, however it ended.
    assert protocol.numbers_of(answer_once(vault, "one", counter)) == {"times": 1}


def test_a_repetition_that_was_overtaken_gets_the_same_answer(tmp_path: Path) -> None:
    """By messages of a server that was killed, say, which Flower's delivers all the same."""
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()
    first, *_ = (answer_once(vault, name, counter) for name in ("one", "two", "three"))
    again = answer_once(Vault(vault.root), "one", counter)
    assert protocol.numbers_of(again) == protocol.numbers_of(first)
    assert counter.times == 3


def test_a_repetition_that_was_long_overtaken_does_nothing(tmp_path: Path) -> None:
    vault, counter = Vault(tmp_path / "a" / "b" / "c"), Counter()
    *_, last = (answer_once(vault, name, counter) for name in ("one", "two", "three", "four"))
    assert protocol.is_busy(answer_once(vault, "one", counter))
    assert counter.times == 4
    again = answer_once(vault, "four", counter)
    assert protocol.numbers_of(again) == protocol.numbers_of(last)
    # Of answers that nobody waits for, nothing is left to fill the disk.
    assert len([name for name in vault.names() if name.startswith("reply")]) == 3
