"""A run that is killed at any moment and resumed gives the results of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from competition_helpers import tiny

from pudica.models.errors import RequestError
from pudica.strategies.core.recorder import Recorder

HERE = Path(__file__).parent


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_killed_at_any_point_and_resumed_it_ends_the_same(
    tmp_path: Path, checkpoint_seconds: float
) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(tmp_path), str(checkpoint_seconds)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}


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
