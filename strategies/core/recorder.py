"""Everything a run leaves behind: measurements, checkpoints, progress, artefacts.

A run is one directory::

    experiment.yaml          as resolved
    run.json                 status, seed, versions, hardware, durations, bytes per exchange
    metrics.jsonl            one row per measurement, append-only
    events.log               what happened, in words
    progress.json            where the run is now
    nodes.json               how it stands with each node, where they are real
    checkpoint.safetensors   from which a killed run goes on
    loggers.json             how far TensorBoard and the like got; see :mod:`.delivery`
    .lock                    held while a process runs it
    …                        artefacts: leaderboards, images, plots

Whatever was measured after the last checkpoint is measured again by a resumed run, so
``metrics.jsonl`` is cut back to the length it had then.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from logging import INFO
from pathlib import Path
from typing import IO, Any, Protocol

import psutil
import torch
import yaml
from flwr.common.logger import log
from pydantic import BaseModel, ValidationError

from pudica.clients.protocol import code_fingerprint
from pudica.models.clock import timestamp
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors, save_tensors, try_lock, write_atomically
from pudica.models.printable import escape_hidden
from pudica.strategies.core.delivery import Loggers, settings_to_share
from pudica.strategies.core.loggers import LoggedRun, LoggerName, check_loggers

PROGRESS_SECONDS = 0.25
CHECKPOINT_SECONDS = 15.0
PACKAGES = ("flwr", "torch", "torchvision", "ray", "numpy", "pandas")


def lock(directory: Path) -> IO[str]:
    """Return an open file; as long as it and this process are there, the run is ours.

    Raises
    ------
    RequestError
        Another process runs it.
    """
    file = (directory / ".lock").open("a+", encoding="utf-8")
    try:
        if not try_lock(file):
            file.seek(0)
            raise RequestError(
                f"{directory} is being run by another process ({file.read().strip()}); "
                "wait until it has ended, or stop it"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    except BaseException:
        _abandon(file)
        raise
    return file


def _abandon(file: IO[str]) -> None:
    """Close a file whose last words do not fit on the disk."""
    with suppress(OSError):
        file.close()


def append_event(directory: Path, text: str) -> None:
    """Put a line into a run's ``events.log``; what a terminal or a reader would act on is escaped.

    From wherever something happens that the run's recorder does not hear of.
    """
    with (directory / "events.log").open("a", encoding="utf-8") as file:
        file.write(f"{timestamp()} {escape_hidden(text)}\n")


class Description(Protocol):
    """What a recorder is told of a run; an experiment says as much."""

    @property
    def name(self) -> str:
        """The experiment's name."""

    @property
    def system(self) -> str:
        """The system's name."""

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""

    @property
    def log(self) -> Sequence[LoggerName]:
        """The loggers that are given the measurements."""

    def names(self) -> list[str]:
        """Return the nodes' names, as far as they are known."""

    def to_yaml(self) -> str:
        """Return the settings, as ``experiment.yaml`` holds them."""


class MemoryRecorder:
    """The measurements of one run; nothing is written.

    Parameters
    ----------
    experiment : Description
    engine : str
        For the record.
    """

    def __init__(self, experiment: Description, engine: str = "flower") -> None:
        self.experiment = experiment
        self.name = experiment.name
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, torch.Tensor] = {}
        self.note: dict[str, Any] = {
            "finished": {},
            "position": {},
            "exchanges": {},
            "seconds": {},
            "stage_bytes": {},
        }
        self._stage, self._seconds_within = "", 0.0
        self.run: dict[str, Any] = {"run": self.name, "engine": engine, "nodes": []}

    # -------------------------------------------------------------------- measurements

    def log(
        self,
        stage: str,
        metric: str,
        value: float,
        *,
        node: str = "organiser",
        round: int = 0,  # noqa: A002
        **tags: str | float | int,
    ) -> None:
        """Append one measurement; ``tags`` such as ``case`` and ``draw`` become columns."""
        row = {"stage": stage, "round": round, "node": node, "metric": metric, "value": value}
        self._append(row | tags)

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def event(self, text: str) -> None:
        """Say what happened; what a terminal or a reader would act on is escaped."""
        log(INFO, "%s", escape_hidden(text))

    def count_exchange(self, kind: str, sent: int, received: int) -> None:
        """Count one message and its reply, in bytes of payload."""
        total = self.note["exchanges"].setdefault(
            kind, {"count": 0, "bytes_sent": 0, "bytes_received": 0}
        )
        total["count"] += 1
        total["bytes_sent"] += sent
        total["bytes_received"] += received
        if (stages := self.note["stage_bytes"]) is not None:
            stages[self._stage] = stages.get(self._stage, 0) + sent + received

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add seconds and bytes to the stage's; what stages within it take is theirs alone."""
        before, self._stage = self._stage, stage
        others, self._seconds_within = self._seconds_within, 0.0
        start = time.monotonic()
        try:
            yield
        finally:
            self._stage = before
            whole = time.monotonic() - start
            own, self._seconds_within = whole - self._seconds_within, others + whole
            seconds = self.note["seconds"]
            seconds[stage] = round(seconds.get(stage, 0.0) + own, 3)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """Say how far a stage is."""

    def set_node_status(self, node: str, status: str) -> None:
        """Say what a node is doing."""

    def check_key(self, node: str, fingerprint: str) -> None:
        """Note with which key a node disguises its images; empty if they are plain.

        Raises
        ------
        RequestError
            If the run was begun with another.
        """
        before = self.note.setdefault("keys", {}).setdefault(node, fingerprint)
        if before != fingerprint:
            raise RequestError(
                f"{node} disguises its images with the key {fingerprint or '(none)'}, and this run "
                f"was begun with {before or '(none)'}: give it back that key, or start a new run"
            )

    # --------------------------------------------------------------------- checkpoints

    def is_finished(self, task: str) -> bool:
        """Return whether a task was finished, in this process or before a kill."""
        return task in self.note["finished"]

    def finish(self, task: str, **result: Any) -> None:
        """Remember that a task is finished, with its result, and drop its position."""
        self.note["finished"][task] = result
        self.note["position"].pop(task, None)
        self.checkpoint()

    def result(self, task: str) -> dict[str, Any]:
        """Return the result of a finished task."""
        return self.note["finished"][task]  # type: ignore[no-any-return]

    def position(self, task: str) -> dict[str, Any]:
        """Return where a task stood at the last checkpoint; empty if it had not begun."""
        return self.note["position"].get(task, {})  # type: ignore[no-any-return]

    def forget(self, task: str) -> None:
        """Drop the arrays that were kept under a task's name."""
        self.arrays = {k: v for k, v in self.arrays.items() if not k.startswith(f"{task}/")}

    def is_checkpoint_due(self) -> bool:
        """Return whether the last checkpoint is long enough ago."""
        return False

    def save_checkpoint(
        self, task: str, arrays: Mapping[str, torch.Tensor], **position: Any
    ) -> None:
        """Checkpoint the position inside a task."""
        self.arrays |= arrays
        self.note["position"][task] = position
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write down everything that a resumed run needs."""

    def close(self, status: str, reason: str = "") -> None:
        """Note the run's end: ``done``, ``failed`` or ``interrupted``."""
        self.run |= {"status": status, "reason": reason}


class Recorder(MemoryRecorder):
    """The side effects of one run, in its directory.

    Parameters
    ----------
    directory : Path
        Of the run; made if it is not there.
    experiment : Description
    engine : str
        For the record.

    Raises
    ------
    RequestError
        The directory holds another experiment's run, another process runs it, it can't be
        written, or a logger is not installed.
    """

    directory: Path

    def __init__(self, directory: Path, experiment: Description, engine: str = "flower") -> None:
        super().__init__(experiment, engine)
        self.directory = directory
        self.name = directory.name
        self._nodes: dict[str, dict[str, Any]] = {}
        self._last_progress = self._last_checkpoint = time.monotonic()
        self._open(engine)

    def _open(self, engine: str) -> None:
        check_loggers(self.experiment.log)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory)
            try:
                self._claim()
            except BaseException:
                _abandon(self._lock)
                raise
            self._metrics = (self.directory / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise RequestError(
                f"--out: can't write the run's directory {self.directory}: {error.strerror}"
            ) from error
        self._restore()
        self.run = {
            "run": self.directory.name,
            "system": self.experiment.system,
            "experiment": self.experiment.name,
            "nodes": self.experiment.names(),
            "engine": engine,
            "status": "running",
            "reason": "",
            "seed": self.experiment.seed,
            "started": self.note.setdefault("started", timestamp()),
            "code": code_fingerprint(),
            "versions": {name: version(name) for name in PACKAGES},
            "hardware": _hardware(),
            "keys": self.note.setdefault("keys", {}),
        }
        self._write_run()
        settings = settings_to_share(self.experiment.to_yaml(), deployed=engine == "deployment")
        about = LoggedRun(self.directory, self.experiment.name, settings)
        self._loggers = Loggers(self.experiment.log, about, self.rows, self.event)

    def _claim(self) -> None:
        resolved = self.experiment.to_yaml()
        path = self.directory / "experiment.yaml"
        if path.exists():
            if not self._is_same(path.read_text(encoding="utf-8"), resolved):
                raise RequestError(
                    f"{self.directory} already holds the run of another experiment; choose another "
                    "directory (--out, record=), or resume it without changes"
                )
        else:
            write_atomically(path, resolved.encode())

    def _is_same(self, kept: str, resolved: str) -> bool:
        """Tell whether settings are the same, in whatever order and words they were written."""
        if kept == resolved:
            return True
        try:
            values = yaml.safe_load(kept)
            if isinstance(self.experiment, BaseModel):
                return type(self.experiment).model_validate(values) == self.experiment
        except (yaml.YAMLError, ValidationError):
            return False
        return bool(values == yaml.safe_load(resolved))

    def _restore(self) -> None:
        kept = load_tensors(self.directory / "checkpoint.safetensors")
        if kept:
            self.arrays, self.note = kept
            # Older versions counted none: the rest of a run would not be all.
            self.note.setdefault("stage_bytes", None)
        self._metrics.truncate(self.note.get("metrics_bytes", 0))
        self._metrics.seek(0, os.SEEK_END)
        with (self.directory / "metrics.jsonl").open(encoding="utf-8") as lines:
            self.rows = [json.loads(line) for line in lines]

    # -------------------------------------------------------------------- measurements

    def _append(self, row: dict[str, Any]) -> None:
        super()._append(row)
        self._metrics.write(json.dumps(row) + "\n")

    def note_data(self, notes: Sequence[str]) -> None:
        """Say once what was taken for what, left out or converted as the data were read."""
        self.run["data"] = list(notes)
        self._write_run()
        if "data" not in self.note:  # a resumed run has said it
            self.note["data"] = list(notes)
            for note in notes:
                self.event(f"data: {note}")

    def event(self, text: str) -> None:
        """Put a line into ``events.log``; what a terminal or a reader would act on is escaped."""
        append_event(self.directory, text)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """Say how far a stage is; between begin and end at most four times a second."""
        now = time.monotonic()
        if 0 < done < total and now - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = now
        state = {"stage": stage, "done": done, "total": total, "unit": unit}
        write_atomically(self.directory / "progress.json", json.dumps(state).encode())

    def set_node_status(self, node: str, status: str) -> None:
        """Write down what a node is doing, for those who wait for it."""
        self._nodes[node] = {"state": status, "since": time.time()}
        write_atomically(self.directory / "nodes.json", json.dumps(self._nodes).encode())

    # --------------------------------------------------------------------- checkpoints

    def is_checkpoint_due(self) -> bool:
        """Return whether the last checkpoint is long enough ago."""
        return time.monotonic() - self._last_checkpoint >= CHECKPOINT_SECONDS

    def checkpoint(self) -> None:
        """Write down everything that a resumed run needs, for the organiser's eyes only."""
        self._metrics.flush()
        self.note["metrics_bytes"] = self._metrics.tell()
        save_tensors(self.directory / "checkpoint.safetensors", self.arrays, self.note)
        self._write_run()
        self._loggers.log(self.rows)  # what no resumed run measures again
        self._last_checkpoint = time.monotonic()

    # ------------------------------------------------------------------------- the end

    def artefact(self, name: str) -> Path:
        """Return the path of an artefact, its folder made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self, status: str, reason: str = "") -> None:
        """Write the run's end: ``done``, ``failed`` or ``interrupted``."""
        try:
            self._metrics.close()
        finally:
            self.run |= {"status": status, "reason": reason, "ended": timestamp()}
            self._write_run()
            if status == "done":
                self._loggers.log(self.rows)
            self._loggers.close(status)
            self._lock.close()

    def _write_run(self) -> None:
        kept = ("seconds", "stage_bytes", "exchanges")
        self.run |= {name: self.note[name] or {} for name in kept}
        write_atomically(self.directory / "run.json", json.dumps(self.run, indent=2).encode())


def _cpu_model() -> str:
    """Return what this machine's CPU calls itself; on systems other than Linux its family."""
    with suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        # Which of PyTorch's kernels are taken: others round otherwise.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpus": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
