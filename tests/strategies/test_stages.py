"""Stages of a competition open and close when its organiser says so."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from competition_helpers import rows_of, tiny
from staged_runs import Running, trained

from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.strategies.themis.orders import give_order, read_stages


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pudica.strategies.themis.stages.POLL_SECONDS", 0.02)
    monkeypatch.setattr("pudica.strategies.themis.joining.LOOK_SECONDS", 0.05)


def board(directory: Path) -> pd.DataFrame:
    return pd.read_csv(directory / "main" / "leaderboard.csv")


def events(directory: Path) -> str:
    return (directory / "events.log").read_text()


def noise_steps(directory: Path) -> int:
    """Return how many steps the noise has been trained for."""
    state = json.loads((directory / "progress.json").read_text())
    return int(state["done"]) if state["stage"].startswith("noise generator") else 0


def test_stages_wait_for_their_orders_and_change_nothing_else(tmp_path: Path) -> None:
    plain = Running(tmp_path / "plain").ended()
    staged = Running(
        tmp_path / "staged", "themis.stages={noise: {opens: command}, test: {opens: command}}"
    )
    staged.until(lambda: staged.stands("join", "closed"))
    with pytest.raises(RequestError, match="nothing to close: join is closed, noise is not open"):
        give_order(staged.directory, "close", None)
    with pytest.raises(RequestError, match="nothing to open: join is closed"):
        give_order(staged.directory, "open", "join")
    time.sleep(0.2)
    assert not staged.stands("noise", "opened")
    assert give_order(staged.directory, "open", None) == "noise"
    staged.until(lambda: staged.stands("noise", "closed"))
    time.sleep(0.2)
    assert not (staged.directory / "main").exists()
    assert give_order(staged.directory, "open", None) == "test"
    assert rows_of(staged.ended()) == rows_of(plain)
    assert {name: list(s) for name, s in read_stages(staged.directory).items()} == {
        name: ["opened", "closed"] for name in ("join", "noise", "test")
    }


def test_stages_open_at_their_times(tmp_path: Path) -> None:
    opens = datetime.now(UTC) + timedelta(seconds=3)
    running = Running(tmp_path / "run", f"themis.stages.noise.opens={opens.isoformat()}")
    running.ended()
    opened = datetime.fromisoformat(read_stages(running.directory)["noise"]["opened"])
    assert timedelta(seconds=-1) <= opened - opens < timedelta(seconds=10)
    assert "waiting for the stage 'noise', which opens at 20" in events(running.directory)


def test_noise_that_is_closed_is_as_far_as_it_came(tmp_path: Path) -> None:
    running = Running(tmp_path / "run", "themis.epochs=100000", "themis.validate_every=100000")
    running.until(lambda: running.stands("noise", "opened"))
    running.until(lambda: noise_steps(running.directory) > 10)
    assert give_order(running.directory, "close", None) == "noise"
    directory = running.ended()
    assert "stage 'noise' closed: as the organiser said" in events(directory)
    assert len(board(directory)) == 3
    rows = [json.loads(row) for row in (directory / "metrics.jsonl").read_text().splitlines()]
    last = max(row["round"] for row in rows if row["metric"] == "mean_sigma")
    validated = {r["round"] for r in rows if r["metric"] == "validation_accuracy" and r["round"]}
    assert validated == {last}


def test_predictions_are_accepted_until_the_test_closes(tmp_path: Path) -> None:
    running = Running(
        tmp_path / "run",
        "themis.stages.test.closes=command",
        "themis.release.compare=false",
        "themis.release.draws=1",
        silent=(1, protocol.PREDICT),
    )
    running.until(lambda: running.stands("test", "opened"))
    time.sleep(0.5)
    assert not running.stands("test", "closed")
    assert give_order(running.directory, "close", None) == "test"
    found = board(running.ended())
    assert "mlp: no answer before the stage was closed" in events(running.directory).lower()
    accuracies = found.set_index("model")["trained_accuracy"]
    assert (accuracies > 0).sum() == 2
    assert accuracies.min() == 0


def test_who_comes_between_stages_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before, and not beside it: threads of one process share PyTorch's global generator.
    together = Running(tmp_path / "all").ended()
    monkeypatch.setattr("pudica.strategies.core.joining.JOIN_SECONDS", 0.2)
    running = Running(tmp_path / "run", "themis.stages.noise.opens=command", away=frozenset({2}))
    running.until(lambda: running.stands("join", "closed"))
    assert len(running.grid.get_node_ids()) == 2
    running.grid.away = frozenset()
    late = tiny().names()[2]
    running.until(lambda: f"{late} joins" in events(running.directory))
    running.until(lambda: late in trained(running.directory))
    give_order(running.directory, "open", None)
    directory = running.ended()
    wanted = board(together).set_index("model")["trained_accuracy"]
    assert board(directory).set_index("model")["trained_accuracy"].to_dict() == wanted.to_dict()


def test_a_run_that_was_stopped_waits_on(tmp_path: Path) -> None:
    plain = Running(tmp_path / "plain").ended()
    stages = "themis.stages={noise: {opens: command}}"
    running = Running(tmp_path / "run", stages)
    running.until(lambda: running.stands("join", "closed"))
    running.grid.break_off()
    with pytest.raises(ConnectionError):
        running.ended()
    # What is ordered meanwhile holds once it goes on.
    give_order(running.directory, "open", None)
    assert rows_of(Running(running.directory, stages).ended()) == rows_of(plain)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("themis.stages.noise.opens=2026-01-01T10:00:00", "time zone|timezone"),
        ("themis.stages.noise.opens=soon", "command"),
        ("themis.stages.tset.opens=command", "Did you mean 'test'"),
        (
            "themis.stages={join: {closes: 2026-01-02T00:00:00Z}, "
            "noise: {opens: 2026-01-01T00:00:00Z}}",
            "noise.opens is before join.closes",
        ),
    ],
)
def test_times_that_make_no_sense_are_named(setting: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        tiny(setting)


def test_a_competition_with_stages_has_one_case() -> None:
    with pytest.raises(RequestError, match="one case"):
        tiny("themis.stages.noise.opens=command", "themis.cases={a: {}, b: {update: averaged}}")
