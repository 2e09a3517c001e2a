"""Competitions between registered participants: who comes late, who signed what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from node_files import node_file
from staged_runs import Running, trained

from pudica.clients import protocol
from pudica.models.clock import timestamp
from pudica.models.files import write_atomically
from pudica.simulations.deployment import authority
from pudica.simulations.deployment.serverapp import ORGANISER_DIR
from pudica.strategies.core.registry import REGISTRY, RegisteredNode
from pudica.strategies.themis.orders import give_order

WAITS = "themis.stages.noise.opens=command"
REAL = ("themis.release.compare=false", "themis.release.draws=1")
TWO = "participants=[{model: softmax}, {model: mlp}]"


@pytest.fixture
def organiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An organiser's folder, with an empty registry."""
    monkeypatch.setenv(ORGANISER_DIR, str(tmp_path))
    monkeypatch.setattr("pudica.strategies.themis.stages.POLL_SECONDS", 0.02)
    monkeypatch.setattr("pudica.strategies.themis.joining.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("pudica.strategies.core.joining.JOIN_SECONDS", 0.2)
    (tmp_path / REGISTRY).write_text("[]")
    return tmp_path


def register(organiser: Path, name: str, node: int, key: str = "") -> None:
    """Let a participant take part from now on, with its own key or another's."""
    folder = organiser / name
    folder.mkdir()
    authority.create_node_key(folder / "node.key", folder / "node.pub", name)
    own = authority.compute_fingerprint(organiser / (key or name) / "node.pub")
    entries = json.loads((organiser / REGISTRY).read_text())
    entries.append(RegisteredNode(name, node, own, timestamp())._asdict())
    write_atomically(organiser / REGISTRY, json.dumps(entries).encode())


def equipped(running: Running, organiser: Path) -> None:
    """Give each node the settings of its participant."""
    for entry in json.loads((organiser / REGISTRY).read_text()):
        place = node_file(organiser / entry["name"] / "node.yaml", name=entry["name"])
        if entry["name"] == "Newcomer":
            place = node_file(place, name="Newcomer", model="softmax")
        running.grid._contexts[entry["node"]].node_config["node"] = str(place)


@pytest.fixture
def competing(organiser: Path) -> Callable[..., Running]:
    def compete(*overrides: str, **grid: object) -> Running:
        for node, name in ((2, "Softmax"), (3, "MLP")):
            if not (organiser / name).exists():
                register(organiser, name, node)
        # Nodes are there before the run looks for them.
        running = Running(organiser / "run", TWO, *REAL, *overrides, nodes=3, begin=False, **grid)
        equipped(running, organiser)
        running.begin()
        return running

    return compete


def manifest(run: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((run / "manifest.json").read_text())["submissions"]
    return found


def test_a_newcomer_takes_part_and_a_resumed_run_keeps_everybodys_models(
    competing: Callable[..., Running], organiser: Path
) -> None:
    running = competing(WAITS, away=frozenset({2}))
    running.until(lambda: running.stands("join", "closed"))
    register(organiser, "Newcomer", 4)
    equipped(running, organiser)
    running.grid.away = frozenset()
    events = running.directory / "events.log"
    running.until(lambda: "Newcomer joins" in events.read_text())
    running.until(lambda: "Newcomer" in trained(running.directory))
    running.grid.break_off()
    with pytest.raises(ConnectionError):
        running.ended()
    give_order(running.directory, "open", None)
    directory = competing(WAITS).ended()
    board = pd.read_csv(directory / "main" / "leaderboard.csv")
    assert set(board["model"]) == {"Softmax", "MLP", "Newcomer"}
    assert (board["trained_accuracy"] > 0).all()
    assert "dropout" not in events.read_text()
    assert {entry["participant"] for entry in manifest(directory)} == set(board["model"])


def test_predictions_that_another_key_signed_are_not_accepted(
    competing: Callable[..., Running], organiser: Path
) -> None:
    register(organiser, "Softmax", 2)
    register(organiser, "MLP", 3, key="Softmax")
    directory = competing().ended()
    board = pd.read_csv(directory / "main" / "leaderboard.csv").set_index("model")
    assert board["trained_accuracy"]["MLP"] == 0
    assert board["trained_accuracy"]["Softmax"] > 0
    assert [entry["participant"] for entry in manifest(directory)] == ["Softmax"]
    assert "not signed by the key it was registered with" in (directory / "events.log").read_text()


def test_what_was_submitted_before_a_kill_counts(
    competing: Callable[..., Running], organiser: Path
) -> None:
    """Though the test is closed by the time that the run goes on, and its node is gone."""
    closes = "themis.stages.test.closes=command"
    running = competing(closes, silent=(1, protocol.PREDICT))
    checkpoint = running.directory / "checkpoint.safetensors"
    running.until(lambda: checkpoint.exists() and b"public_key" in checkpoint.read_bytes())
    running.grid.break_off()
    with pytest.raises(ConnectionError):
        running.ended()
    give_order(running.directory, "close", None)
    directory = competing(closes, away=frozenset({0})).ended()
    board = pd.read_csv(directory / "main" / "leaderboard.csv").set_index("model")
    assert board["trained_accuracy"]["Softmax"] > 0
    assert board["trained_accuracy"]["MLP"] == 0
    assert (directory / "submissions.safetensors").stat().st_mode & 0o077 == 0
    assert os.environ[ORGANISER_DIR] not in (directory / "manifest.json").read_text()
