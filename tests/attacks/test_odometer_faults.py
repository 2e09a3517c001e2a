"""The record of what was released: killed at every point, put back, filled with nonsense."""

from __future__ import annotations

import os
import shutil
import signal
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheating_cloud import Refused
from forking import fork, wait_for
from node_under_attack import DEFAULT, STRICTEST, NodeUnderAttack

import pudica.clients.app
import pudica.clients.runtime.odometer
import pudica.clients.runtime.vault
from pudica.clients.runtime.odometer import (
    ACTIVATIONS,
    COUNTS,
    Odometer,
    Release,
    activations,
    count,
    spent,
)
from pudica.clients.runtime.releasing import function_of
from pudica.clients.runtime.vault import Vault

EPSILON, DELTA = 3.0, 1e-5
WORK: dict[str, Any] = {
    "data": {"name": "digits", "limit": 60},
    "batch_size": 30,
    "reports": {"test": {"count": 1, "epsilon": 0.5}},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# ------------------------------------------------------------------------- kill -9 anywhere


def work(device: NodeUnderAttack, wire: Path) -> None:
    """Let a device release an epoch of two batches and a count; what leaves goes to a file."""
    pudica.clients.app._nodes.clear()
    device.forgets = 0.0
    device.join(**WORK)
    front = device.packed(device.front(0))
    for step in (0, 1):
        sent = device.smash(front=front, step=step).arrays["smashed"].numpy()
        (wire / f"{step}-{function_of(sent.tobytes())}").touch()
    counts = device.evaluate(np.ones(len(device.back()), np.float32), front=front).metrics
    (wire / f"counts-{function_of(str(counts))}").touch()


def killed_at(point: int, directory: Path, wire: Path) -> bool:
    """Do the work in a process that is killed before it writes for the so manieth time."""

    def killed() -> None:
        torch.set_num_threads(1)
        left = iter(range(point))
        write = pudica.clients.runtime.vault.write_atomically

        def or_die(*arguments: Any, **further: Any) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*arguments, **further)

        pudica.clients.runtime.vault.write_atomically = or_die  # type: ignore[assignment]
        pudica.clients.runtime.odometer.write_atomically = or_die  # type: ignore[attr-defined]
        work(NodeUnderAttack(directory, **STRICTEST), wire)

    ended = wait_for(fork(killed))
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


@pytest.mark.slow
def test_never_less_is_counted_than_was_sent_wherever_a_device_is_killed(tmp_path: Path) -> None:
    point, killed = 0, True
    while killed:
        directory, wire = tmp_path / f"node {point}", tmp_path / f"wire {point}"
        wire.mkdir()
        killed = killed_at(point, directory, wire)
        device = NodeUnderAttack(directory, **STRICTEST)
        work(device, wire)  # it is started again, and asked for the same
        entries = device.odometer().entries()
        # Nothing left twice with other noise, and it is counted once.
        assert sorted(path.name.partition("-")[0] for path in wire.iterdir()) == [
            "0",
            "1",
            "counts",
        ]
        assert sorted(entry.release.what for entry in entries) == [ACTIVATIONS, COUNTS]
        point += 1
    assert point > 20


# ----------------------------------------------------------------------------- put back


def used(directory: Path) -> tuple[NodeUnderAttack, np.ndarray]:
    """Return a device before it has released anything, its folder copied, and then after."""
    device = NodeUnderAttack(directory, **STRICTEST)
    device.join()
    shutil.copytree(directory / "vault", directory / "before")
    sent = device.try_smash(front=device.packed(device.front(0)))
    assert sent is not None
    return device, sent


def put_back(place: Path, before: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(before, place)


@pytest.mark.parametrize("part", ["", ".lasting", "first"])
def test_a_copy_from_before_buys_nothing(tmp_path: Path, part: str) -> None:
    """All of the vault, the record alone, or the run's vault alone."""
    device, sent = used(tmp_path / "node")
    vault = tmp_path / "node" / "vault"
    if part == ".lasting":
        shutil.rmtree(vault / part)
        (vault / part).mkdir()
    else:
        put_back(vault / part, tmp_path / "node" / "before" / part)
    again = device.try_smash(front=device.packed(device.front(0)))
    assert again is None
    with pytest.raises(Refused, match=r"put back to an earlier state|exhausted"):
        device.smash(front=device.packed(device.front(0)))
    assert len(sent)


def test_a_copy_from_within_an_epoch_buys_nothing(tmp_path: Path) -> None:
    """Its record has the same entry, but not the batch that left since."""
    device = NodeUnderAttack(tmp_path / "node", **STRICTEST)
    device.join()
    front = device.packed(device.front(0))
    assert device.try_smash(front=front, step=0) is not None
    shutil.copytree(tmp_path / "node" / "vault", tmp_path / "before")
    assert device.try_smash(front=front, step=1) is not None
    put_back(tmp_path / "node" / "vault", tmp_path / "before")
    with pytest.raises(Refused, match="put back to an earlier state"):
        device.smash(front=front, step=1)


def test_an_emptied_vault_buys_nothing(tmp_path: Path) -> None:
    device, _ = used(tmp_path / "node")
    shutil.rmtree(tmp_path / "node" / "vault" / "first")
    device.join()
    with pytest.raises(Refused, match="exhausted"):
        device.smash(front=device.packed(device.front(0)))


def test_a_damaged_record_stops_everything(tmp_path: Path) -> None:
    device, _ = used(tmp_path / "node")
    record = device.lasting / "odometer"
    record.write_text(record.read_text().replace("gaussian", "laplace"))
    with pytest.raises(Refused, match="'odometer' in this node's vault is damaged"):
        device.smash(front=device.packed(device.front(0)), epoch=1)


def test_without_the_anchor_too_nothing_is_noticed_as_the_page_says(tmp_path: Path) -> None:
    """Who puts the whole machine back to an earlier state: no program on it can know."""
    device, sent = used(tmp_path / "node")
    put_back(tmp_path / "node" / "vault", tmp_path / "node" / "before")
    shutil.rmtree(tmp_path / "state")
    again = device.try_smash(front=device.packed(device.front(0)))
    assert again is not None
    assert not np.array_equal(again, sent)


# --------------------------------------------------------------------------------- adding up


def release(what: str = ACTIVATIONS, **values: Any) -> Release:
    own = {"run": "r", "case": "c", "part": "train", "division": "d", "noise": "laplace"}
    return Release(what=what, **{**own, "ratio": 1.0, **values})


def test_parts_do_not_add_up_while_images_stay_in_them() -> None:
    train, test = release(), release(part="test", ratio=2.0)
    assert spent({train: 1, test: 1}, DELTA) == pytest.approx(2)
    moved = release(part="test", ratio=2.0, division="other")
    assert spent({train: 1, moved: 1}, DELTA) == pytest.approx(3)
    assert spent({train: 1, moved: 0}, DELTA) == pytest.approx(1)
    assert activations({train: 1, test: 1}) == 1
    assert activations({train: 1, moved: 1}) == 2
    assert spent({train: 1, release(noise=None): 1}, DELTA) == np.inf
    assert spent({}, DELTA) == 0


def test_two_processes_pay_one_after_the_other(tmp_path: Path) -> None:
    """Two runs at once: neither overwrites what the other has paid."""

    def pay(number: int) -> None:
        vault = Vault(tmp_path / "vault" / f"run {number}" / "node", tmp_path / "lasting")
        for turn in range(10):
            Odometer(vault).note(release(run=f"run {number}", ratio=0.01 * turn))

    children = [fork(partial(pay, number)) for number in range(6)]
    assert {wait_for(child) for child in children} == {0}
    vault = Vault(tmp_path / "vault" / "run 0" / "node", tmp_path / "lasting")
    assert len(Odometer(vault).entries()) == 60


# ------------------------------------------------------------------------------ nonsense


class Heard:
    """What a fuzzed device has sent of each image, from its own answers.

    Attributes
    ----------
    rows : dict of int to set of bytes
        By training image, what different activations of it have left.
    counts : set of str
        Different answers.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.answers: dict[str, set[str]] = defaultdict(set)


def fuzzed(
    device: NodeUnderAttack, random: np.random.Generator, front: np.ndarray, heard: Heard
) -> None:
    """Send one request that is nearly as it should be."""
    front = front.copy()
    if random.random() < 0.3:
        front[random.integers(len(front))] = random.choice([0.0, 1e30, np.nan, np.inf, -1.0])
    given = {"front": front} if random.random() < 0.7 else {}
    kind = random.integers(7)
    number = int(random.choice([-1, 0, 0, 1, 2, 17, 2**31]))
    if kind == 0:
        before, device.run = device.run, str(random.choice(["first", "first", "second", "third"]))
        changes: dict[str, Any] = random.choice(  # type: ignore[assignment]
            [
                {},
                {"case": "other"},
                {"seed": 5},
                {"batch_size": 600},
                {"releases": 99},
                {"data_seed": 3},
                {"budget": {"epsilon": 99, "delta": 0.5}},
                {"reports": {"test": {"count": 99, "epsilon": 1e-6}}},
                {"reports": {"validation": {"count": 2, "epsilon": 0.5}}},
                {"test_features": True, "reports": {}},
                {"shield": {**STRICTEST["shield"], "epsilon": 0.5}},
                {"shield": {**STRICTEST["shield"], "clip": 1e6}},
                {"shield": {"name": "none"}},
            ]
        )
        try:
            device.join(**changes)
        except Refused:
            device.run = before
            raise
    elif kind in (1, 2):
        step = int(random.integers(3))
        sent = device.smash(epoch=number, step=step, count=1, **given).arrays["smashed"].numpy()
        device.assignment = device.agreed[device.run]
        ends = np.cumsum(device.batches())
        batch = device.order(number)[ends[step] - len(sent) : ends[step]]
        for image, row in zip(batch, sent, strict=True):
            heard.rows["train", int(image)].add(row.tobytes())
    elif kind == 3:
        part = str(random.choice(["train", "validation", "test"]))
        back = np.full(len(device.back()), random.integers(5), np.float32)
        heard.answers[part].add(str(device.evaluate(back, part, **given).metrics))
    elif kind == 4:
        first = 30 * int(random.integers(2))
        count_ = min(30, len(device.held_out("test")) - first)
        sent = device.features(first, count_, noisy=bool(random.integers(2)), **given)
        for image, row in enumerate(sent.arrays["features"].numpy(), start=first):
            heard.rows["test", image].add(row.tobytes())
    elif kind == 5:
        total = len(device.held_out("test"))
        guess = device.count_correct(np.full(total, random.integers(10)))
        heard.answers["test"].add(str(guess.metrics))
    else:
        device.ask("train.front", {"turn": number}, {"gradient": np.zeros((30, 1), np.float32)})
        pytest.fail("a front's gradient left the device")


REQUESTS = 1_000


@pytest.mark.slow
def test_a_thousand_requests_release_nothing_beyond_the_budget(tmp_path: Path) -> None:
    device, random, heard = NodeUnderAttack(tmp_path, **DEFAULT), np.random.default_rng(0), Heard()
    device.forgets = 0.01
    device.terms |= {"data": {"name": "digits", "limit": 120}, "batch_size": 30}
    device.join()
    front, refused = device.packed(device.front(0)), 0
    for _ in range(REQUESTS):
        try:
            fuzzed(device, random, front, heard)
        except Refused:
            refused += 1
    entries = device.odometer().entries()
    assert 0 < refused < REQUESTS
    assert any(heard.rows.values())
    assert spent(count(entries), DELTA) <= EPSILON * (1 + 1e-9)
    assert activations(count(entries)) == 1
    answers = sum(entry.release.what == COUNTS for entry in entries)
    assert sum(map(len, heard.answers.values())) <= answers
    assert not heard.answers["train"]
    assert max(map(len, heard.rows.values())) == 1
