"""Progress of a run on any engine, by polling its progress.json, or of work in this process."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pudica.models.printable import escape_hidden

Nodes = dict[str, dict[str, Any]]

POLL_SECONDS = 0.2
LINE_SECONDS = 10.0


@contextmanager
def watch(directory: Path, quiet: bool = False) -> Iterator[None]:
    """Show the progress of a run, unless it is to be quiet.

    In a terminal, on standard error, and in a notebook it shows bars; elsewhere it prints a line on
    standard error when a stage begins, every ten seconds, and when it ends.
    """
    if quiet:
        yield
        return
    progress, nodes = directory / "progress.json", directory / "nodes.json"
    for stale in (progress, nodes):  # left by the run that is resumed
        stale.unlink(missing_ok=True)

    def refresh() -> None:
        with suppress(FileNotFoundError):  # nothing to show yet
            display.update(json.loads(progress.read_text()))
        with suppress(FileNotFoundError):  # no real nodes
            display.update_nodes(json.loads(nodes.read_text()))

    with show_progress() as display, call_repeatedly(refresh, POLL_SECONDS):
        yield


@contextmanager
def call_repeatedly(function: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function in the background at intervals, and once more at the end."""
    stopped = threading.Event()

    def poll() -> None:
        while not stopped.wait(seconds):
            function()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        function()


@contextmanager
def show_progress() -> Iterator[BarDisplay | LineDisplay]:
    """Show the progress of work in this process."""
    display: BarDisplay | LineDisplay
    if is_notebook():
        display = NotebookDisplay()
    else:
        display = BarDisplay() if sys.stderr.isatty() else LineDisplay()
    try:
        yield display
    finally:
        display.close()


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return Console().is_jupyter


class BarDisplay:
    """A rich progress bar for each stage, and below them a line for each real node."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._node_progress = Progress(TextColumn("  {task.description}", markup=False))
        self._tasks: dict[str, Any] = {}
        self._node_tasks: dict[str, Any] = {}
        self._rates: dict[str, Rate] = {}
        self._bars = Table.grid()
        self._bars.add_row(self._progress)
        self._start()

    def _start(self) -> None:
        self._live = Live(self._bars, console=Console(stderr=True))
        self._live.start()

    def update(self, state: dict[str, Any]) -> None:
        """Move the stage's bar."""
        stage, done, total = state["stage"], state["done"], state["total"]
        for other, task in self._tasks.items():
            if other != stage:
                self._progress.update(task, completed=self._progress.tasks[task].total)
        if stage not in self._tasks:
            self._rates[stage] = Rate(done)
            shown = escape_hidden(stage)
            self._tasks[stage] = self._progress.add_task(shown, total=total, rate="")
        rate = self._rates[stage].format(done, state["unit"])
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate)

    def update_nodes(self, states: Nodes) -> None:
        """Show the state of each node; one that is no longer there disappears."""
        for name in self._node_tasks.keys() - states.keys():
            self._node_progress.remove_task(self._node_tasks.pop(name))
        if states and self._bars.row_count == 1:
            self._bars.add_row(self._node_progress)
        for name, text in _describe_nodes(states).items():
            if name not in self._node_tasks:
                self._node_tasks[name] = self._node_progress.add_task("")
            self._node_progress.update(
                self._node_tasks[name], description=escape_hidden(f"{name}: {text}")
            )

    def close(self) -> None:
        """Stop updating; the bars remain on the screen."""
        self._live.stop()


class NotebookDisplay(BarDisplay):
    """The same bars in one output of a notebook's cell, which is replaced in place.

    rich's own live display needs ipywidgets in a notebook.
    """

    def _start(self) -> None:
        from IPython.display import display

        self._output = display(self._bars, display_id=True)

    def update(self, state: dict[str, Any]) -> None:
        """Move the stage's bar."""
        super().update(state)
        self._output.update(self._bars)

    def update_nodes(self, states: Nodes) -> None:
        """Show the state of each node."""
        super().update_nodes(states)
        self._output.update(self._bars)

    def close(self) -> None:
        """Do nothing; the bars remain in the notebook."""


class LineDisplay:
    """Plain lines for logs and pipes."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"stage": ""}
        self._printed = 0.0
        self._nodes_printed, self._node_states = 0.0, dict[str, str]()
        self._last_done = -1
        self._rate = Rate(0)

    def update(self, state: dict[str, Any]) -> None:
        """Print a line if the stage is new or has ended, or if enough time has passed."""
        if state["stage"] != self._state["stage"]:
            self._finish_stage()
            self._rate, self._last_done = Rate(state["done"]), -1
        self._state = state
        ended = state["done"] == state["total"]
        due = self._last_done < 0 or ended or time.monotonic() - self._printed >= LINE_SECONDS
        if due and state["done"] != self._last_done:
            self._print_state(state["done"])

    def update_nodes(self, states: Nodes) -> None:
        """Print the nodes whose state has changed, if enough time has passed."""
        now = {name: state["state"] for name, state in states.items()}
        if now == self._node_states or time.monotonic() - self._nodes_printed < LINE_SECONDS:
            return
        self._nodes_printed = time.monotonic()
        for name, text in _describe_nodes(states).items():
            if now[name] != self._node_states.get(name):
                _print_line(f"  {name}: {text}")
        self._node_states = now

    def _finish_stage(self) -> None:
        """Print the end of the previous stage, if its last state was missed."""
        if self._state["stage"] and self._last_done != self._state["total"]:
            self._print_state(self._state["total"])

    def _print_state(self, done: int) -> None:
        self._printed, self._last_done = time.monotonic(), done
        stage, total, unit = (self._state[key] for key in ("stage", "total", "unit"))
        rate = self._rate.format(done, unit, total)
        _print_line(f"{stage}: {done}/{total} {unit}s{rate and ', ' + rate}")

    def close(self) -> None:
        """Do nothing."""


def _print_line(line: str) -> None:
    print(escape_hidden(line), file=sys.stderr, flush=True)


def _describe_nodes(states: Nodes) -> dict[str, str]:
    """Return each node's state in words, with its duration unless the node has answered."""
    words = {}
    for name, state in states.items():
        words[name] = state["state"]
        if state["state"] != "answered":
            words[name] += f" for {max(0.0, time.time() - state['since']):.0f} s"
    return words


class Rate:
    """The rate of a stage in units per second, since it was first seen."""

    def __init__(self, done: int) -> None:
        self._first = done
        self._start = time.monotonic()

    def format(self, done: int, unit: str, total: int | None = None) -> str:
        """Return, for example, ``"12.5 steps/s, 8 s left"``, or "" if there is no progress yet."""
        seconds = time.monotonic() - self._start
        if done <= self._first or seconds < POLL_SECONDS:
            return ""
        rate = (done - self._first) / seconds
        left = f", {(total - done) / rate:.0f} s left" if total and total > done else ""
        speed = f"{rate:.3g} {unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s per {unit}"
        return speed + left
