"""Shows how far a run is, whatever engine it is on: it reads the run's progress.json."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOOK_SECONDS = 0.2
LINE_SECONDS = 10.0


class Watcher:
    """A context in which progress is shown on standard error.

    Bars in a terminal; elsewhere a plain line when a stage begins, every ten seconds, and
    when it ends.

    Parameters
    ----------
    directory : Path
        Of the run.
    quiet : bool
        Show nothing.
    """

    def __init__(self, directory: Path, quiet: bool = False) -> None:
        self._file = directory / "progress.json"
        self._quiet = quiet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._show: Bars | Lines

    def __enter__(self) -> Watcher:
        if not self._quiet:
            self._file.unlink(missing_ok=True)  # of a run that is resumed
            self._show = _chosen()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            self._over.set()
            self._thread.join()
            self._look()
            self._show.close()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        with suppress(FileNotFoundError):  # nothing to say yet
            self._show.update(json.loads(self._file.read_text()))


def _chosen() -> Bars | Lines:
    return Bars() if sys.stderr.isatty() else Lines()


@contextmanager
def display() -> Iterator[Bars | Lines]:
    """Show the progress of work in this very process."""
    show = _chosen()
    try:
        yield show
    finally:
        show.close()


class Bars:
    """A rich progress bar per stage."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._rates: dict[str, Rate] = {}
        self._progress.start()

    def update(self, state: dict[str, Any]) -> None:
        """Move the stage's bar."""
        stage, done, total = state["stage"], state["done"], state["total"]
        for other, task in self._tasks.items():
            if other != stage:
                self._progress.update(task, completed=self._progress.tasks[task].total)
        if stage not in self._tasks:
            self._rates[stage] = Rate(done)
            self._tasks[stage] = self._progress.add_task(stage, total=total, rate="")
        rate = self._rates[stage].text(done, state["unit"])
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


class Lines:
    """Plain lines for logs and pipes."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"stage": ""}
        self._printed = 0.0
        self._said = -1
        self._rate = Rate(0)

    def update(self, state: dict[str, Any]) -> None:
        """Print a line if there is something new to say."""
        if state["stage"] != self._state["stage"]:
            self._end()
            self._rate, self._said = Rate(state["done"]), -1
        self._state = state
        ended = state["done"] == state["total"]
        due = self._said < 0 or ended or time.monotonic() - self._printed >= LINE_SECONDS
        if due and state["done"] != self._said:
            self._say(state["done"])

    def _end(self) -> None:
        """Say that the stage before is over, if its last report was missed."""
        if self._state["stage"] and self._said != self._state["total"]:
            self._say(self._state["total"])

    def _say(self, done: int) -> None:
        self._printed, self._said = time.monotonic(), done
        stage, total, unit = (self._state[key] for key in ("stage", "total", "unit"))
        rate = self._rate.text(done, unit, total)
        print(f"{stage}: {done}/{total} {unit}s{rate and ', ' + rate}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to close."""


class Rate:
    """Units per second since a stage was first seen."""

    def __init__(self, done: int) -> None:
        self._first = done
        self._start = time.monotonic()

    def text(self, done: int, unit: str, total: int | None = None) -> str:
        """Return for example ``"12.5 steps/s, 8 s left"``; empty as long as nothing moved."""
        seconds = time.monotonic() - self._start
        if done <= self._first or seconds < LOOK_SECONDS:
            return ""
        rate = (done - self._first) / seconds
        left = f", {(total - done) / rate:.0f} s left" if total and total > done else ""
        speed = f"{rate:.3g} {unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s per {unit}"
        return speed + left
