"""A competition that is killed at one point after the other, each time by a kill -9."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from competition_helpers import rows_of, tiny
from flwr.app import Message
from forking import fork, wait_for

import pudica.strategies.core.recorder
from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.clients.runtime.vault import Vault
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app

SETTINGS = [
    "participants=[{model: softmax}, {model: mlp}, {model: cnn-tiny}]",
    "themis.examiner={model: softmax, training: {epochs: 1}}",
    "themis.cases={a: {update: joint}, b: {update: sequential, cheaters: [MLP], dropouts: 1}}",
    "themis.clip=1.1",
]

# In the order in which a run comes to them, each counted from where it was resumed. It is saved
# after each exchange, so whatever a kill spoils is still spoilt when the next one comes.
OFTEN = [
    (protocol.HELLO, 1),
    (protocol.JOIN, 2),
    ("vault", 1),
    (protocol.LOCAL, 1),
    ("file", 10),
    ("vault", 2),
    (protocol.LOCAL, 2),
    ("vault", 4),
    ("checkpoint", 1),
    (protocol.LOCAL, 2),
    (protocol.PREDICT, 1),
    ("checkpoint", 2),
    (protocol.PREDICT, 6),
    (protocol.HELLO, 3),
    (protocol.DENSITY, 2),
    (protocol.NOISY, 2),
    (protocol.GRADIENT, 1),
    (protocol.GRADIENT, 5),
    ("checkpoint", 2),
    (protocol.NOISY, 2),
    (protocol.GRADIENT, 6),
    ("file", 12),
    (protocol.PREDICT, 1),
    (protocol.PREDICT, 5),
    ("checkpoint", 2),
    (protocol.VISIT, 2),
    (protocol.VISIT, 5),
    ("file", 8),
    (protocol.VISIT, 3),
    (protocol.PREDICT, 4),
    ("checkpoint", 3),
]
# Where it is seldom saved, what matters is how far back a run goes.
SELDOM = [
    ("checkpoint", 3),
    (protocol.LOCAL, 4),
    ("vault", 1),
    (protocol.PREDICT, 9),
    (protocol.NOISY, 2),
    (protocol.GRADIENT, 11),
    (protocol.VISIT, 7),
    (protocol.PREDICT, 4),
]


def run(directory: Path, *overrides: str) -> None:
    """Run, or go on with, the competition."""
    torch.set_num_threads(1)
    experiment = tiny(*SETTINGS, *overrides)
    config = build_run_config(experiment, directory, "inprocess")
    server_app(InProcessGrid(client_app, 3, config), build_server_context(config))


def killed_at(what: str, number: int, directory: Path, *overrides: str) -> bool:
    """Run, or go on, up to a point; tell whether it came to that."""

    def killed() -> None:
        die_at(what, number)
        run(directory, *overrides)

    ended = wait_for(fork(killed))
    assert ended in (0, -signal.SIGKILL), f"{what} {number}: a child ended by {ended}"
    return ended == -signal.SIGKILL


def die_at(what: str, number: int) -> None:
    """Arrange for a kill -9 just after the given exchange, checkpoint or file was begun."""
    counter = itertools.count(1)

    def maybe() -> None:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if what == "checkpoint":
        _before(pudica.strategies.core.recorder.Recorder, "checkpoint", maybe)
    elif what == "vault":
        _before(Vault, "save", maybe)
    elif what == "file":
        _before(os, "fdopen", maybe)  # a file that is opened and never gets its content
    else:
        answer = InProcessGrid._answer

        def answered(self: InProcessGrid, message: Message) -> Message:
            reply = answer(self, message)
            if message.metadata.message_type == what:
                maybe()
            return reply

        InProcessGrid._answer = answered  # type: ignore[method-assign]


def _before(owner: Any, name: str, action: Any) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        action()
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)


def results(directory: Path) -> dict[str, Any]:
    """Return everything that must not depend on a kill."""
    exchanges = json.loads((directory / "run.json").read_text())["exchanges"]
    return {
        "rows": rows_of(directory),
        "boards": [(directory / case / "leaderboard.csv").read_text() for case in "ab"],
        # A resumed run greets its nodes again.
        "exchanges": {k: v for k, v in exchanges.items() if not k.startswith("query")},
    }
