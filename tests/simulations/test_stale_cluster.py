"""A cluster that is dead, and that Ray still has a note of, holds up nobody."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import services

from pudica.simulations.benchmarks import exchange
from pudica.simulations.engines import flower
from pudica.simulations.engines.cluster import connect
from pudica.simulations.programs.calling import find_free_port, make_private_folder
from pudica.strategies.core.experiment import RayConfig
from pudica.strategies.loading import load_experiment

pytestmark = pytest.mark.slow

MOST_SECONDS = 240

SHORT = [
    "training.epochs=1",
    "themis.epochs=1",
    "themis.update=averaged",
    "themis.steps_per_visit=10",
    "themis.release.draws=1",
    "themis.examiner=null",
]


@pytest.fixture(autouse=True)
def stale_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Leave the note of a dead cluster where Ray looks for one; return its address."""
    folder = make_private_folder()
    note = folder / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text(address := f"127.0.0.1:{find_free_port()}")
    for variable in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # What `ray.init()` would join.
    assert services.find_bootstrap_address(None) == address
    yield address
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail a test that waits for the dead cluster."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"still waiting after {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(MOST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_ray_engine_starts_one_of_its_own(stale_address: str) -> None:
    with connect(RayConfig()):
        assert ray.cluster_resources()["CPU"] > 0
        assert ray.get_runtime_context().gcs_address != stale_address


def test_flowers_engine_starts_one_of_its_own(tmp_path: Path) -> None:
    flower.run(load_experiment("themis-digits", SHORT), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_the_benchmark_of_flowers_engine_starts_one_of_its_own() -> None:
    assert all(milliseconds > 0 for milliseconds in exchange.measure_flower_rounds(1))
