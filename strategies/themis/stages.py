"""Stages of a competition, which open and close at times or on the organiser's orders."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from pudica.models.clock import timestamp
from pudica.models.files import write_atomically
from pudica.strategies.themis.config import STAGES, StageConfig
from pudica.strategies.themis.joining import Admission
from pudica.strategies.themis.local import train_models
from pudica.strategies.themis.orders import (
    ORDERS,
    STATE,
    Action,
    Times,
    describe_time,
    read_times,
)
from pudica.strategies.themis.organiser import Organiser

POLL_SECONDS = 0.5


class Stages:
    """The stages of a competition of one case; with several cases, stages never wait."""

    def __init__(self, organiser: Organiser) -> None:
        self.organiser = organiser
        self.recorder = organiser.recorder
        self.settings = organiser.settings.stages
        self.admission = Admission(organiser)
        self.enabled = len(organiser.settings.each_case()) == 1
        self.state: Times = self.recorder.note.setdefault("stages", {})
        self._orders: Times = {}
        self._next_poll = float("-inf")

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Wait until a stage opens; record its opening and its closing."""
        if not self.enabled:
            yield
            return
        if "opened" not in self.state.get(name, {}):
            self._wait_until_open(name)
            self._record(name, "opened")
        yield
        reason = "as the organiser said" if self.is_closed(name) else "all done"
        self._record(name, "closed", reason)

    @contextmanager
    def accepting(self, name: str) -> Iterator[None]:
        """Accept replies while a stage is open; if it closes later, wait for all of them."""
        over = partial(self.is_closed, name)
        with self.organiser.cohort.deadline(over, self.closes_later(name)):
            yield

    def closes_later(self, name: str) -> bool:
        """Tell whether a stage stays open until a time or a command."""
        return self.enabled and self._settings_of(name).closes is not None

    def is_closed(self, name: str) -> bool:
        """Tell whether a stage must end now: its time has come, or the organiser said so.

        One that ended because all was done is open again for nodes that return after a resume.
        """
        return self.enabled and self._is_due(name, "close")

    def admit_until(self, name: str, action: Action = "close") -> None:
        """Let participants in and train their models until a stage closes, or opens."""
        due = partial(self._is_due, name, action)
        with self.organiser.cohort.deadline(due, endless=True):
            while not due():
                if self.admission.admit():
                    train_models(self.organiser, self.admission.admit)
                time.sleep(POLL_SECONDS)

    def _settings_of(self, name: str) -> StageConfig:
        stage: StageConfig = getattr(self.settings, name)
        return stage

    def _wait_until_open(self, name: str) -> None:
        opens = self._settings_of(name).opens
        if opens is None or self._is_due(name, "open"):
            return
        waiting = f"waiting for the stage '{name}', which opens {describe_time(opens)}"
        self.recorder.event(waiting)
        self.recorder.progress(waiting, 0, 1, "stage")
        if name != STAGES[0]:
            self.admit_until(name, "open")
        while not self._is_due(name, "open"):
            time.sleep(POLL_SECONDS)
        self.recorder.progress(waiting, 1, 1, "stage")

    def _is_due(self, name: str, action: Action) -> bool:
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_SECONDS
            self._orders = read_times(self.recorder.directory / ORDERS)
        if action in self._orders.get(name, {}):
            return True
        stage = self._settings_of(name)
        when = stage.opens if action == "open" else stage.closes
        return isinstance(when, datetime) and datetime.now(UTC) >= when

    def _record(self, name: str, event: str, reason: str = "") -> None:
        if event not in (stage := self.state.setdefault(name, {})):
            stage[event] = timestamp()
            self.recorder.event(f"stage '{name}' {event}" + (f": {reason}" if reason else ""))
            self.recorder.checkpoint()
        text = json.dumps(self.state, indent=2)
        write_atomically(self.recorder.directory / STATE, text.encode())
