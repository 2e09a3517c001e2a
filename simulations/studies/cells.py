"""Running the cells of a study: each is one Ray task, and fails alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray

from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.simulations.engines.cluster import compute_worker_count, connect
from pudica.simulations.programs.submission import close_record, read_run_record
from pudica.simulations.runner import is_done
from pudica.strategies.core.experiment import Experiment, RayConfig
from pudica.strategies.core.recorder import lock
from pudica.strategies.loading import load_experiment

POLL_SECONDS = 0.25
# A cell whose worker died, or was ended for its memory, goes on from its checkpoint so often.
RETRIES = 1
# Workers of a study that was killed need a moment to end.
UNLOCK_SECONDS = 30.0
CANCEL_SECONDS = 5.0


def run_cell(directory: str) -> str:
    """Run the experiment of a directory in this process; return why it failed, or ""."""
    from pudica.simulations.engines import inprocess

    path = Path(directory)
    try:
        _wait_until_unlocked(path)
        inprocess.run(load_experiment(str(path / "experiment.yaml"), []), path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _wait_until_unlocked(directory: Path) -> None:
    deadline = time.monotonic() + UNLOCK_SECONDS
    while True:
        try:
            lock(directory).close()
        except RequestError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


class Work(NamedTuple):
    """What is done with each cell.

    Attributes
    ----------
    run : callable
        Gets a cell's directory, in a process of its own; returns why it failed, or "".
    is_done : callable
        Tells of a cell's directory whether nothing is left to do.
    """

    run: Callable[[str], str]
    is_done: Callable[[Path], bool]


RUNNING = Work(run_cell, is_done)


@dataclass
class StudyProgress:
    """How far a study is.

    Attributes
    ----------
    done, total : int
        Number of cells that have ended, and of all.
    running : dict of str to dict
        By cell, its stage (``state``), and since when it has been running (``since``).
    failures : dict of str to str
        Why cells failed.
    """

    total: int
    done: int = 0
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_cells(
    experiments: Mapping[str, Experiment],
    directory: Path,
    workers: int | None = None,
    report: Callable[[StudyProgress], None] | None = None,
    work: Work = RUNNING,
) -> dict[str, str]:
    """Run those cells that are not done, several at a time, and return why some failed.

    Parameters
    ----------
    experiments : mapping of str to Experiment
        By cell; each takes the shares of CPUs and GPUs that its ``client`` section says.
    directory : Path
        The study's; each cell has a folder in it, with its ``experiment.yaml``.
    workers : int, optional
        The most cells at a time; by default as many as fit.
    report : callable, optional
        Called several times a second.
    work : Work
        By default, run it.

    Raises
    ------
    RequestError
        If the cells are to run on different clusters, or one does not fit into it.
    """
    left = [name for name in experiments if not work.is_done(directory / name)]
    waiting = {name: experiments[name] for name in left}
    progress = StudyProgress(len(experiments), len(experiments) - len(waiting))
    if not waiting:
        return {}
    start = time.time()
    with connect(_find_cluster(waiting)):
        for name, experiment in waiting.items():
            _check_resources(name, experiment, workers)
        with _cancelling() as pending:
            for ended in _run_tasks(waiting, directory, workers, pending, work):
                progress.running = _find_running(
                    pending.values(), directory, progress.running, start
                )
                progress.done += len(ended)
                progress.failures |= {name: reason for name, reason in ended.items() if reason}
                if report:
                    report(progress)
    return progress.failures


def _find_cluster(experiments: Mapping[str, Experiment]) -> RayConfig:
    places = {(one.ray.address, one.ray.token) for one in experiments.values()}
    if len(places) > 1:
        raise RequestError("ray.address: all runs of a study must be on the same Ray cluster")
    return next(iter(experiments.values())).ray


def _check_resources(name: str, experiment: Experiment, workers: int | None) -> None:
    client = experiment.client
    try:
        compute_worker_count(workers, client.num_cpus, client.num_gpus, 1)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


@contextmanager
def _cancelling() -> Iterator[dict[Any, str]]:
    """Yield a place for tasks; those that are still in it at an interruption are cancelled."""
    pending: dict[Any, str] = {}
    try:
        yield pending
    except BaseException:
        for reference in pending:
            ray.cancel(reference)
        ray.wait(list(pending), num_returns=len(pending), timeout=CANCEL_SECONDS)
        raise


def _run_tasks(
    experiments: Mapping[str, Experiment],
    directory: Path,
    workers: int | None,
    pending: dict[Any, str],
    work: Work,
) -> Iterator[dict[str, str]]:
    """Run cells, at most ``workers`` at a time; yield often, with the outcome of those that ended.

    ``pending`` holds what runs now.
    """
    # Ray itself would run a task again for ever if it takes too much memory.
    task = ray.remote(max_retries=0)(work.run)
    left, deaths = list(experiments), Counter[str]()
    while left or pending:
        while left and len(pending) < (workers or len(experiments)):
            name = left.pop(0)
            client = experiments[name].client
            shares = {"num_cpus": client.num_cpus, "num_gpus": client.num_gpus}
            pending[task.options(**shares).remote(str(directory / name))] = name
        ended, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_SECONDS)
        outcomes = {}
        for reference in ended:
            name = pending.pop(reference)
            try:
                outcomes[name] = _explain_outcome(str(ray.get(reference)), directory / name)
            except ray.exceptions.RayError as error:
                deaths[name] += 1
                if deaths[name] <= RETRIES:
                    left.insert(0, name)
                else:
                    reason = f"its worker died: {str(error).strip().splitlines()[0]}"
                    outcomes[name] = _explain_outcome(reason, directory / name)
        yield outcomes


def _find_running(
    names: Iterable[str], directory: Path, before: Mapping[str, dict[str, Any]], start: float
) -> dict[str, dict[str, Any]]:
    """Return the state of each cell that has begun since ``start``, by name."""
    found = {}
    for name in names:
        path = directory / name / "progress.json"
        with suppress(FileNotFoundError):  # not begun
            if path.stat().st_mtime < start:
                continue
            state = json.loads(path.read_text())
            since = before.get(name, {}).get("since", time.time())
            found[name] = {
                "state": f"{state['stage']}: {state['done']}/{state['total']} {state['unit']}s",
                "since": since,
            }
    return found


def _explain_outcome(reason: str, directory: Path) -> str:
    """Return why a cell failed, or ""; note it in its ``run.json`` if the cell could not."""
    if not reason and not is_done(directory):
        reason = f"nothing of it is in {directory}: a cluster's machines must share this folder"
    record = read_run_record(directory)
    if reason and record:
        close_record(directory, "failed", reason, record)
    elif reason:
        record = {"run": directory.name, "status": "failed", "reason": reason}
        write_atomically(directory / "run.json", json.dumps(record, indent=2).encode())
    return reason
