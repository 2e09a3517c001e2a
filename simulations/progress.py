"""Shows how far a run is, whatever engine it is on: it reads the run's progress.json."""

from __future__ import annotations

import json
import sys
import threading
import time
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
        self._show = Bars() if sys.stderr.isatty() else Lines()
        self._file.unlink(missing_ok=True)
        if not self._quiet:
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
        if self._file.exists():
            self._show.update(json.loads(self._file.read_text()))


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
        self._stage = ""
        self._printed = 0.0
        self._last = -1
        self._rate = Rate(0)

    def update(self, state: dict[str, Any]) -> None:
        """Print a line if there is something new to say."""
        stage, done, total = state["stage"], state["done"], state["total"]
        if stage != self._stage:
            self._stage, self._rate, self._last = stage, Rate(done), -1
        elif done == self._last or (
            done < total and time.monotonic() - self._printed < LINE_SECONDS
        ):
            return
        self._printed, self._last = time.monotonic(), done
        rate = self._rate.text(done, state["unit"], total)
        print(f"{stage}: {done}/{total} {state['unit']}s{rate and ', ' + rate}", file=sys.stderr)

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
