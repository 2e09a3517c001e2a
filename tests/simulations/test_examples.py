"""The examples are complete Flower apps, short ones, and run as their page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

EXAMPLES = Path(__file__).parents[2] / "examples"
# Nodes, what makes a run short, and what it ends with.
APPS = {
    "themis": (4, "epochs=1", r"Wide +\d"),
    "split_learning": (3, "epochs=1", r"test-accuracy': 0\.[4-9]"),
    "disguised_fedavg": (3, "rounds=2", r"round 2: .*accuracy': 0\.[6-9]"),
    "facemix": (2, "epochs=2", "serving"),
    "stock_app": (4, "num-server-rounds=2", r"round 2: accuracy 0\.[6-9].*\nasked 2\.0"),
}


def simulate(pudica: Callable[..., Result], name: str, engine: str) -> str:
    nodes, settings, _ = APPS[name]
    options = ("--nodes", nodes, "--run-config", settings, "--engine", engine, "--workers", 1)
    done = pudica("simulate", EXAMPLES / name, *options)
    assert done.exit_code == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tried() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")}
    assert folders == {*APPS, "own_system"}  # which has a test of its own


@pytest.mark.parametrize("name", APPS)
def test_an_example_is_short(name: str) -> None:
    lines = [line for file in EXAMPLES.glob(f"{name}/*/*.py") for line in file.open()]
    assert 10 < len(lines) <= 120


@pytest.mark.parametrize("name", [name for name in APPS if name != "themis"])
def test_an_example_runs(pudica: Callable[..., Result], name: str) -> None:
    assert re.search(APPS[name][2], simulate(pudica, name, "inprocess"))


@pytest.mark.slow
def test_an_example_runs_the_same_on_ray(pudica: Callable[..., Result]) -> None:
    here, there = (simulate(pudica, "themis", engine) for engine in ("inprocess", "ray"))
    assert re.search(APPS["themis"][2], here)
    assert there.splitlines() == here.splitlines()
