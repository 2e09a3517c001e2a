"""Handing a run's measurements to its loggers, as it goes.

No logger can take a step back, and a resumed run measures again what came after its last
checkpoint. So a checkpoint is what hands over: all that was measured before it.
``loggers.json`` in the run's directory says how much of it each logger can't lose any more, and by
what id the logger knows the run.

Each logger has a thread of its own, in which it may be slow, or fail, without holding up the run.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from pudica.models.files import write_atomically
from pudica.strategies.core.loggers import LOGGERS, LoggedRun, LoggerName, Row

CLOSE_SECONDS = 60.0
"""For loggers to write the rest when a run has ended."""
STATE_FILE = "loggers.json"
LONGEST_REASON = 300


def settings_to_share(resolved: str, deployed: bool) -> dict[str, Any]:
    """Return what a logger may know of an experiment's settings.

    Left out is where keys and tokens lie and, with real participants, the seed: noise may come
    from it.

    Parameters
    ----------
    resolved : str
        The settings as YAML.
    deployed : bool
        Whether participants are real.
    """
    values: dict[str, Any] = _without_secrets(yaml.safe_load(resolved))
    return {key: value for key, value in values.items() if not (deployed and key == "seed")}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _without_secrets(v) for k, v in value.items() if not _is_secret(str(k), v)}


def _is_secret(key: str, value: Any) -> bool:
    """Tell whether a setting, or what a case changes in it, names a file that holds a secret."""
    names_secret = key.rpartition(".")[2] in ("key", "token")
    return names_secret and isinstance(value, str) and os.sep in value


class _State:
    """How many rows each logger surely has, and by what id it knows the run; kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._kept: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._kept = json.loads(path.read_text(encoding="utf-8"))

    def get(self, name: str) -> tuple[str, int]:
        """Return a logger's id of the run, and its number of rows."""
        kept = self._kept.get(name, {})
        return kept.get("id", ""), kept.get("rows", 0)

    def set(self, name: str, identifier: str, rows: int) -> None:
        with self._lock:
            self._kept[name] = {"id": identifier, "rows": rows}
            write_atomically(self._path, json.dumps(self._kept).encode())


class _Delivery(threading.Thread):
    """Hands rows to one logger, until a status says that the run has ended."""

    def __init__(
        self,
        name: LoggerName,
        run: LoggedRun,
        restored: Sequence[Row],
        state: _State,
        report: Callable[[str], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._kind, self._run, self._restored = LOGGERS[name], run, restored
        self._state, self._report = state, report
        self._given: deque[tuple[float, int]] = deque()  # how many rows, and when
        self.waiting: SimpleQueue[Sequence[Row] | str] = SimpleQueue()

    def run(self) -> None:
        """Deliver; a failure is reported once, and ends it."""
        try:
            self._deliver()
        except Exception as error:
            reason = str(error).partition("\n")[0][:LONGEST_REASON]
            self._report(f"log: {self.name} is switched off: {type(error).__name__}: {reason}")

    def _deliver(self) -> None:
        known, given = self._state.get(self.name)
        given = min(given, len(self._restored))
        logger = self._kind(replace(self._run, id=known))
        self._given.append((-math.inf, given))
        self._state.set(self.name, logger.id, given)
        for row in self._restored[:given]:
            logger.curve(row)  # names hang on what came before
        rows: Sequence[Row] | str = self._restored[given:]
        while not isinstance(rows, str):
            logger.log(rows, given)
            given += len(rows)
            self._state.set(self.name, logger.id, self._count_safe(given, logger.seconds_at_risk))
            rows = self.waiting.get()
        logger.close(rows)
        self._state.set(self.name, logger.id, given)

    def _count_safe(self, given: int, seconds_at_risk: float) -> int:
        """Return how many of the rows given up to now a kill can't take from the logger."""
        now = time.monotonic()
        self._given.append((now, given))
        while len(self._given) > 1 and self._given[1][0] <= now - seconds_at_risk:
            self._given.popleft()
        return self._given[0][1]


class Loggers:
    """All loggers of a run.

    Parameters
    ----------
    names : sequence of str
    run : LoggedRun
    restored : sequence of dict
        The rows up to the checkpoint from which a run goes on.
    report : callable
        Is told in words if a logger fails, from another thread.
    """

    def __init__(
        self,
        names: Sequence[LoggerName],
        run: LoggedRun,
        restored: Sequence[Row],
        report: Callable[[str], None],
    ) -> None:
        self._handed_over, self._report = len(restored), report
        state, rows = _State(run.directory / STATE_FILE), list(restored)
        self._deliveries = [_Delivery(name, run, rows, state, report) for name in names]
        for delivery in self._deliveries:
            delivery.start()

    def log(self, rows: Sequence[Row]) -> None:
        """Hand over all rows of the run so far; those that were handed over before are skipped."""
        self._put(rows[self._handed_over :])
        self._handed_over = len(rows)

    def close(self, status: str) -> None:
        """Say how the run ended, and give the loggers a minute."""
        self._put(status)
        deadline = time.monotonic() + CLOSE_SECONDS
        for delivery in self._deliveries:
            delivery.join(max(0.0, deadline - time.monotonic()))
            if delivery.is_alive():
                self._report(
                    f"log: {delivery.name} was not done {CLOSE_SECONDS:g} s after the run, and "
                    "lacks some measurements; metrics.jsonl holds all"
                )

    def _put(self, item: Sequence[Row] | str) -> None:
        for delivery in self._deliveries:
            delivery.waiting.put(item)
