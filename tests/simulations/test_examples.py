"""The examples are complete Flower apps, short ones, and run as their page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Nodes, what makes a run short, and what it ends with.
APPS = {
    "themis": (4, "epochs=1", r"Wide +\d"),
    "split_learning": (3, "epochs=1", r"test-accuracy': 0\.[4-9]"),
    "disguised_fedavg": (3, "rounds=2", r"round 2: .*accuracy': 0\.[6-9]"),
    "facemix": (2, "epochs=2", "serving"),
    "stock_app": (4, "num-server-rounds=2", r"round 2: accuracy 0\.[6-9].*\nasked 2\.0"),
}


def simulate(name: str, *options: str) -> str:
    nodes, settings, _ = APPS[name]
    call = "from pudica.simulations.cli import main; main()"
    options = ("--nodes", str(nodes), "--run-config", settings, *options)
    done = subprocess.run(
        [sys.executable, "-c", call, "simulate", str(EXAMPLES / name), *options],
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tried() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")}
    assert folders == {*APPS, "own_system"}  # which has a test of its own


@pytest.mark.parametrize("name", APPS)
def test_an_example_is_short(name: str) -> None:
    lines = [line for file in EXAMPLES.glob(f"{name}/*/*.py") for line in file.open()]
    assert 10 < len(lines) <= 120


@pytest.mark.parametrize("name", [name for name in APPS if name != "themis"])
def test_an_example_runs(name: str) -> None:
    assert re.search(APPS[name][2], simulate(name, "--engine", "inprocess"))


def test_an_example_runs_the_same_on_ray() -> None:
    here, there = (simulate("themis", "--engine", engine) for engine in ("inprocess", "ray"))
    assert re.search(APPS["themis"][2], here)
    assert there.splitlines() == here.splitlines()
