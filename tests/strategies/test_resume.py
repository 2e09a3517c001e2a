"""A run that is killed at any moment and resumed gives the results of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from competition_helpers import tiny
from forking import fork, wait_for
from killed_runs import OFTEN, SELDOM, killed_at, results, run

import pudica.strategies.core.recorder
from pudica.models.errors import RequestError
from pudica.strategies.core.recorder import Recorder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of a run that nobody kills."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    run(directory)
    return results(directory)


@pytest.mark.parametrize(("checkpoint_seconds", "points"), [(0.0, OFTEN), (1e9, SELDOM)])
def test_killed_at_one_point_after_the_other_and_resumed_it_ends_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    checkpoint_seconds: float,
    points: list[tuple[str, int]],
) -> None:
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", checkpoint_seconds)
    directory = tmp_path / "run"
    for what, number in points:
        assert killed_at(what, number, directory), f"it did not come to {what} {number}"
    assert wait_for(fork(lambda: run(directory))) == 0
    assert results(directory) == undisturbed


def test_what_was_measured_after_the_last_checkpoint_is_forgotten(tmp_path: Path) -> None:
    first = Recorder(tmp_path / "run", tiny(), "test")
    first.log("local", "loss", 1.0, node="a")
    first.finish("one")
    first.log("local", "loss", 2.0, node="a")
    first.close("failed")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "loc')  # cut off by a kill
    again = Recorder(tmp_path / "run", tiny(), "test")
    assert [row["value"] for row in again.rows] == [1.0]
    assert again.is_finished("one")
    assert not again.is_finished("two")
    again.log("local", "loss", 3.0, node="a")
    again.close("done")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [1.0, 3.0]


def test_a_directory_with_another_run_is_left_alone(tmp_path: Path) -> None:
    Recorder(tmp_path / "run", tiny(), "test").close("done")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(RequestError, match="already holds the run of another experiment"):
        Recorder(tmp_path / "run", tiny("seed=1"), "test")
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before
