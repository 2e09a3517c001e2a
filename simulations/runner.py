"""Runs an experiment on an engine, from the request to the run's directory."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from clients.protocol import ParticipantConfig
from models.custom import SUFFIX
from models.errors import RequestError, unknown
from simulations.progress import Watcher
from strategies.app import new_directory
from strategies.experiment import Experiment, load_experiment

ENGINES = ("inprocess", "ray", "flower")


def prepare(
    source: str | None, overrides: list[str], out: Path, resume: Path | None
) -> tuple[Experiment, Path]:
    """Return the experiment and its run's directory, everything checked that can be.

    Raises
    ------
    RequestError
        The request is wrong; nothing was started.
    """
    if resume:
        return _resumed(source, overrides, resume)
    if source is None:
        raise RequestError("say which experiment: pudica run NAME (see `pudica list`)")
    experiment = with_absolute_paths(load_experiment(source, overrides))
    if (out / "experiment.yaml").exists():
        raise RequestError(
            f"--out: {out} already holds a run; name a folder for runs, or --resume {out}"
        )
    experiment.check_models(experiment.load_data())
    return experiment, new_directory(out.absolute(), experiment)


def _resumed(source: str | None, overrides: list[str], run: Path) -> tuple[Experiment, Path]:
    kept = run / "experiment.yaml"
    if not kept.is_file():
        raise RequestError(f"--resume: {run} holds no run (there is no experiment.yaml in it)")
    experiment = load_experiment(str(kept), [])
    if source and with_absolute_paths(load_experiment(source, overrides)) != experiment:
        raise RequestError(
            f"--resume: {run} is the run of another experiment or of other settings; leave the "
            "name and --set away, or start a new run without --resume"
        )
    if overrides and not source:
        raise RequestError("--resume: a run is resumed with the settings it has, without --set")
    return experiment, run.absolute()


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Return the experiment with its files named in a way that holds in any directory."""
    data = experiment.data
    places = {key: getattr(data, key) for key in ("root", "path")}
    absolute = {key: _absolute(place) for key, place in places.items() if place is not None}
    return experiment.model_copy(
        update={
            "data": data.model_copy(update=absolute),
            "participants": [_with_absolute_model(p) for p in experiment.participants],
        }
    )


def _with_absolute_model(participant: ParticipantConfig) -> ParticipantConfig:
    if not participant.model.endswith(SUFFIX):
        return participant
    return participant.model_copy(update={"model": str(_absolute(Path(participant.model)))})


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def is_done(directory: Path) -> bool:
    """Return whether a run has ended well."""
    path = directory / "run.json"
    return path.exists() and json.loads(path.read_text())["status"] == "done"


def execute(experiment: Experiment, directory: Path, engine: str, quiet: bool) -> None:
    """Run the experiment on an engine and show its progress."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if is_done(directory):
        return
    run = import_module(f"simulations.engines.{engine}").run
    with _terminable(), Watcher(directory, quiet):
        run(experiment, directory)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM stop a run as Ctrl-C does, so that nothing is left running."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
