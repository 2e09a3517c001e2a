from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torchvision  # noqa: F401 - importing it makes a folder among the temporary ones
from flwr.supercore.object_ref import validate

from pudica.clients.protocol import code_fingerprint
from pudica.models.errors import RequestError
from pudica.simulations.engines import flower, inprocess
from pudica.simulations.programs import bundle, submission
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.loading import load_experiment

SHORT = [
    "training.epochs=2",
    "themis.epochs=1",
    "themis.update=averaged",
    "themis.steps_per_visit=10",
    "themis.release.draws=1",
    "themis.examiner=null",
]
INTERRUPTIBLE = """
import signal
import sys
from pathlib import Path
from pudica.simulations.engines import flower
from pudica.strategies.loading import load_experiment
# Started in the background of a shell, a process inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
flower.run(load_experiment("themis-digits", []), Path(sys.argv[1]))
"""


def short_experiment(*overrides: str) -> Experiment:
    return load_experiment("themis-digits", [*SHORT, *overrides])


def rows(directory: Path) -> list[str]:
    return sorted((directory / "metrics.jsonl").read_text().splitlines())


def record(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text())


def mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(
            text in word
            for word in (process.cwd(), *process.cmdline(), *process.environ().values())
        )
    except psutil.Error:
        return False


def left_in(folder: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if mentions(p, str(folder)) and p.pid != os.getpid()]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that is the test's own, so that leftovers are seen."""
    folder = Path(tempfile.mkdtemp(prefix="p", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose packages have the names of ours."""
    folder = tmp_path / "elsewhere"
    for package in ("models", "clients", "strategies", "utils"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setenv("PUDICA_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.mark.slow
def test_same_results_as_in_process_and_nothing_left(
    tmp_path: Path, temporary: Path, elsewhere: Path
) -> None:
    mine, flowers = tmp_path / "inprocess" / "run", tmp_path / "flower" / "run"
    inprocess.run(short_experiment(), mine)
    flower.run(short_experiment(), flowers)

    assert rows(flowers) == rows(mine)
    assert record(flowers)["status"] == "done"
    assert record(flowers)["engine"] == "flower"
    assert record(flowers)["code"] == code_fingerprint()
    assert "Starting Flower Simulation" in (flowers / "flower.log").read_text()
    assert len(list((flowers / "vault").rglob("assignment.json"))) == 5
    assert left_in(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_failed_run_says_why(tmp_path: Path, temporary: Path, elsewhere: Path) -> None:
    experiment = short_experiment("data.name=mnist", "data.root=nowhere")

    with pytest.raises(submission.FlowerRunFailed, match=str(elsewhere / "nowhere")):
        flower.run(experiment, tmp_path / "run")

    assert record(tmp_path / "run")["status"] == "failed"
    assert (tmp_path / "run" / "flower.log").stat().st_size > 0
    assert left_in(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_interrupt_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "PUDICA_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", INTERRUPTIBLE, str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any("ClientAppActor" in " ".join(words(p)) for p in left_in(temporary)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()

    assert process.returncode == -signal.SIGINT
    assert left_in(temporary) == []
    assert list(temporary.iterdir()) == []
    assert record(tmp_path / "run")["status"] == "interrupted"


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_workers_are_as_many_as_fit_and_are_needed() -> None:
    def workers(cpus: int, *overrides: str) -> str:
        values = flower.build_federation_config(short_experiment(*overrides), cpus).split()
        assert "num-supernodes=5" in values
        assert "client-resources-num-cpus=1" in values
        return dict(value.split("=") for value in values)["init-args-num-cpus"]

    assert workers(2) == "2"
    assert workers(64) == "5"
    assert workers(2, "client.num_cpus=0.5") == "4"
    assert workers(64, "ray.workers=3") == "3"
    with pytest.raises(RequestError, match="do not fit"):
        workers(2, "client.num_cpus=4")


def test_bundle_names_the_installed_apps_and_carries_no_code(tmp_path: Path) -> None:
    wanted = short_experiment().model_dump_json(by_alias=True)
    bundle.write_bundle(tmp_path, {"experiment": wanted})

    assert [file.name for file in tmp_path.rglob("*")] == ["pyproject.toml"]
    app = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"]["experiment"] == wanted
    for name in app["components"].values():
        assert validate(name, check_module=True, project_dir=tmp_path) == (True, None)
