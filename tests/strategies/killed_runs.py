"""Kill a competition at one point after the other, resume it, and print what differs.

Run as a script: it forks a child per run, so nothing but a kill -9 ends one.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from competition_helpers import rows_of, tiny
from flwr.app import Message

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
POINTS = [
    (protocol.HELLO, 1),
    (protocol.JOIN, 2),
    (protocol.LOCAL, 1),
    (protocol.LOCAL, 4),
    (protocol.LOCAL, 8),
    (protocol.DENSITY, 2),
    (protocol.NOISY, 2),
    (protocol.GRADIENT, 1),
    (protocol.GRADIENT, 5),
    (protocol.GRADIENT, 11),
    (protocol.VISIT, 2),
    (protocol.VISIT, 7),
    (protocol.PREDICT, 1),
    (protocol.PREDICT, 9),
    (protocol.PREDICT, 20),
    ("checkpoint", 3),
    ("checkpoint", 12),
    ("checkpoint", 25),
    ("vault", 1),
    ("vault", 5),
    ("vault", 6),
    ("vault", 8),
    ("file", 10),
    ("file", 40),
]
# Where checkpoints are seldom, what matters is how far back a run goes.
SELDOM = [
    (protocol.LOCAL, 4),
    (protocol.NOISY, 2),
    (protocol.GRADIENT, 11),
    (protocol.VISIT, 7),
    (protocol.PREDICT, 9),
    ("checkpoint", 3),
    ("vault", 6),
]


def run(directory: Path) -> None:
    """Run, or go on with, the competition."""
    torch.set_num_threads(1)
    experiment = tiny(*SETTINGS)
    config = build_run_config(experiment, directory, "inprocess")
    server_app(InProcessGrid(client_app, 3, config), build_server_context(config))


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


def forked(work: Any) -> int:
    """Do the work in a child and return the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def results(directory: Path) -> dict[str, Any]:
    """Return everything that must not depend on a kill."""
    exchanges = json.loads((directory / "run.json").read_text())["exchanges"]
    return {
        "rows": rows_of(directory),
        "boards": [(directory / case / "leaderboard.csv").read_text() for case in "ab"],
        # A resumed run greets its nodes again.
        "exchanges": {k: v for k, v in exchanges.items() if not k.startswith("query")},
    }


def main(folder: Path, checkpoint_seconds: float) -> None:
    """Print, as JSON, the points at which a killed and resumed run differs."""
    pudica.strategies.core.recorder.CHECKPOINT_SECONDS = checkpoint_seconds
    reference = folder / "undisturbed" / "run"
    if forked(lambda: run(reference)) != 0:
        raise SystemExit("the undisturbed run failed")
    wrong = {}
    for what, number in SELDOM if checkpoint_seconds else POINTS:
        directory = folder / f"{what}-{number}" / "run"

        def killed(what: str = what, number: int = number, directory: Path = directory) -> None:
            die_at(what, number)
            run(directory)

        ended = forked(killed)
        if ended != signal.SIGKILL:
            wrong[f"{what} {number}"] = f"was not killed: {ended}"
            continue
        if forked(lambda directory=directory: run(directory)) != 0:  # type: ignore[misc]
            wrong[f"{what} {number}"] = "did not resume"
            continue
        found, expected = results(directory), results(reference)
        different = [key for key in expected if found[key] != expected[key]]
        if different:
            wrong[f"{what} {number}"] = f"differs in {different}"
    print(json.dumps(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
