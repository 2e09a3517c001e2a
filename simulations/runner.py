"""Running an experiment on an engine, from the request to the run's directory."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from pudica.models.errors import RequestError, unknown_name_error
from pudica.simulations.console import print_message
from pudica.simulations.progress import watch
from pudica.strategies.app import new_directory
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import lock
from pudica.strategies.loading import load_experiment

ENGINES = ("inprocess", "ray", "flower")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Further signals within this time after the first are ignored.
PATIENCE_SECONDS = 3.0


def prepare(
    source: str | None, overrides: list[str], out: Path, resume: Path | None, engine: str
) -> tuple[Experiment, Path]:
    """Validate a request; return the experiment and its new or resumed directory.

    Raises
    ------
    RequestError
        If the request is wrong; then nothing was started, and no directory is left behind.
    """
    if engine not in ENGINES:
        raise unknown_name_error("engine", engine, ENGINES)
    if resume:
        return prepare_resume(source, overrides, resume)
    if source is None:
        raise RequestError("name an experiment: pudica run NAME (see `pudica list`)")
    experiment = load_experiment(source, overrides)
    _validate_out(out)
    for note in experiment.check().notes:
        print_message(f"data: {note}")
    return experiment, make_directory(out.absolute(), experiment.name)


def _validate_out(out: Path) -> None:
    if (out / "experiment.yaml").exists():
        raise RequestError(
            f"--out: {out} already holds a run; name a folder for runs, or --resume {out}"
        )
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RequestError(
            f"--out: {existing} is a file; name a folder in which the run's is created"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"--out: no permission to write in {existing}; choose another --out")


def make_directory(out: Path, name: str) -> Path:
    """Make a new directory for a run, or a study, of this name.

    Raises
    ------
    RequestError
        If it can't be made.
    """
    while True:
        directory = new_directory(out, name)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue  # another run started in the same second
        except OSError as error:
            raise RequestError(
                f"--out: can't make {directory}: {error.strerror}; choose another --out"
            ) from error
        return directory


def prepare_resume(source: str | None, overrides: list[str], run: Path) -> tuple[Experiment, Path]:
    """Return the experiment and directory of a run to resume.

    Raises
    ------
    RequestError
        If there is no run, it is of another experiment, or another process is running it.
    """
    file = run / "experiment.yaml"
    if not file.is_file() and (run / "study.yaml").is_file():
        named = shlex.quote(str(run))
        raise RequestError(f"--resume: {run} is a study; use pudica study --resume {named}")
    if not file.is_file():
        raise RequestError(f"--resume: {run} holds no run (there is no experiment.yaml in it)")
    experiment = load_experiment(str(file.absolute()), [])
    if source and load_experiment(source, overrides) != experiment:
        raise RequestError(
            f"--resume: {run} is a run of another experiment or of other settings; leave out the "
            "name and --set, or start a new run without --resume"
        )
    if overrides and not source:
        raise RequestError("--resume: a run is resumed with the settings it has, without --set")
    if not is_done(run):
        lock(run).close()
        experiment.check()
    return experiment, run.absolute()


def is_done(directory: Path) -> bool:
    """Return whether a run is complete."""
    path = directory / "run.json"
    try:
        return bool(json.loads(path.read_text())["status"] == "done")
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is damaged; delete it, and resume the run") from error


def execute(experiment: Experiment, directory: Path, engine: str, quiet: bool) -> None:
    """Run the experiment on an engine and show its progress.

    Raises
    ------
    RequestError
        If the engine can't run as requested. The directory of a run that had not started is
        removed.
    """
    run = import_module(f"pudica.simulations.engines.{engine}").run
    is_new = not (directory / "experiment.yaml").exists()
    try:
        with handle_signals(), watch(directory, quiet):
            run(experiment, directory)
    except RequestError:
        if is_new and not (directory / "checkpoint.safetensors").exists():
            shutil.rmtree(directory)
        raise


@contextmanager
def handle_signals() -> Iterator[None]:
    """Let SIGTERM stop a run like Ctrl-C, and ignore further signals while it stops.

    Only the main thread can; in any other, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -math.inf

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE_SECONDS:
            last = time.monotonic()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
