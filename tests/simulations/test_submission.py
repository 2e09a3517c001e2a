"""How a run on a SuperLink ends is said, whoever ended it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pudica.simulations.programs.submission import FlowerRun, FlowerRunFailed, record_outcome


class Command:
    """One of Flower's commands that has ended, or goes on until it is ended."""

    def __init__(self, goes_on: bool = False) -> None:
        self.returncode = None if goes_on else 0

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, _: float | None = None) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.returncode = -15


class Flower:
    """Stands for Flower's commands."""

    def __init__(self) -> None:
        self.runs = [{"run-id": "7", "status": "finished:completed", "status-details": ""}]
        self.called: list[tuple[str, ...]] = []
        self.commands: list[Command] = []
        self.goes_on = False

    def __call__(self, log: Path, *arguments: str, output: Path | None = None) -> Any:
        name, *rest = arguments[2:]
        self.called.append((name, *rest))
        if output:
            output.write_text(json.dumps({"success": True, "runs": self.runs}))
        self.commands.append(Command(self.goes_on and name == "run"))
        with log.open("a") as lines:
            lines.write("Successfully started run 7\n" if name == "run" else "")
        return self.commands[-1]


@pytest.fixture
def flower() -> Flower:
    return Flower()


def submit(flower: Flower, directory: Path, check: Any = lambda: None) -> None:
    directory.mkdir(exist_ok=True)
    with record_outcome(directory):
        FlowerRun(flower, check, directory / "app", directory).run()


def write(directory: Path, **record: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "run.json").write_text(json.dumps(record))


def read(directory: Path) -> dict[str, str]:
    return dict(json.loads((directory / "run.json").read_text()))


def test_a_server_that_ends_is_the_reason_and_nothing_goes_on(
    flower: Flower, tmp_path: Path
) -> None:
    """Its ServerApp ends with it, and knows no reason."""
    directory, flower.goes_on = tmp_path / "run", True

    def check() -> None:
        write(directory, status="interrupted", reason="stopped from the keyboard")
        raise FlowerRunFailed("the server ended")

    write(directory, status="running", reason="")
    with pytest.raises(FlowerRunFailed, match="the server ended"):
        submit(flower, directory, check)
    assert (read(directory)["status"], read(directory)["reason"]) == ("failed", "the server ended")
    assert flower.commands[-1].poll() == -15


@pytest.mark.parametrize("before", ["running", "failed"])
def test_a_serverapp_that_was_killed_is_the_reason(
    flower: Flower, tmp_path: Path, before: str
) -> None:
    """Also if it was killed before it could write a word of its own."""
    write(tmp_path / "run", status=before, reason="of the last time")
    flower.runs[0] |= {
        "status": "finished:failed",
        "status-details": "No heartbeat received from the task",
    }
    with pytest.raises(FlowerRunFailed, match="ended without a word: it was killed"):
        submit(flower, tmp_path / "run")
    assert read(tmp_path / "run")["status"] == "failed"
    assert "ended without a word" in read(tmp_path / "run")["reason"]


def test_what_a_serverapp_said_itself_is_left(flower: Flower, tmp_path: Path) -> None:
    def check() -> None:
        write(tmp_path / "run", status="failed", reason="diverged")
        flower.goes_on = True
        raise FlowerRunFailed("the server ended")

    write(tmp_path / "run", status="running", reason="")
    with pytest.raises(FlowerRunFailed):
        submit(flower, tmp_path / "run", check)
    assert read(tmp_path / "run")["reason"] == "diverged"


def test_what_flower_still_has_of_a_run_is_stopped_before_it_goes_on(
    flower: Flower, tmp_path: Path
) -> None:
    """Or nodes would answer what nobody waits for."""
    submit(flower, tmp_path / "run")
    assert [name for name, *_ in flower.called] == ["run", "ls"]
    flower.called.clear()
    flower.runs.append({"run-id": "8", "status": "running", "status-details": ""})
    flower.runs[0]["status"] = "running"

    def check() -> None:
        flower.runs[0]["status"] = "finished:completed"

    submit(flower, tmp_path / "run", check)
    assert [(name, *rest[:1]) for name, *rest in flower.called[:2]] == [
        ("ls", "pudica"),
        ("stop", "7"),
    ]
    assert [name for name, *_ in flower.called] == ["ls", "stop", "run", "ls"]
