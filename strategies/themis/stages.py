"""Stages of a competition, which open and close at times or when the organiser says so."""

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
from pudica.strategies.themis.joining import admit
from pudica.strategies.themis.local import train_models
from pudica.strategies.themis.orders import ORDERS, STATE, Times, What, read_times, said
from pudica.strategies.themis.organiser import Organiser

LOOK_SECONDS = 0.5
# Meanwhile somebody may come, or come back with what was wrong mended.
DOOR_SECONDS = 5.0


class Stages:
    """The stages of a competition with one case; with several, each is open as long as it lasts.

    Parameters
    ----------
    organiser : Organiser
    """

    def __init__(self, organiser: Organiser) -> None:
        self.organiser = organiser
        self.recorder = organiser.recorder
        self.settings = organiser.settings.stages
        self.staged = len(organiser.settings.each_case()) == 1
        self.state: Times = self.recorder.note.setdefault("stages", {})
        self._looked = self._opened_door = float("-inf")
        self._orders: Times = {}

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Wait until a stage opens; note that, and its end."""
        if not self.staged:
            yield
            return
        self._begin(name)
        yield
        self._note(name, "closed", "as the organiser said" if self.is_closed(name) else "all done")

    @contextmanager
    def accepting(self, name: str) -> Iterator[None]:
        """Accept answers as long as a stage is open; wait for all if it says when it closes."""
        over = partial(self.is_closed, name)
        with self.organiser.cohort.deadline(over, self.closes_later(name)):
            yield

    def closes_later(self, name: str) -> bool:
        """Tell whether a stage stays open until a time or a command."""
        return self.staged and self._of(name).closes is not None

    def is_closed(self, name: str) -> bool:
        """Tell whether a stage is to end now: it is time, or the organiser said so.

        One that ended because all was done is open again for who comes back after a resume.
        """
        return self.staged and self._is_due(name, "close")

    def keep_the_door(self, name: str, until: What = "close") -> None:
        """Let participants in, and let them train, until a stage closes, or opens."""
        organiser, due = self.organiser, partial(self._is_due, name, until)
        with organiser.cohort.deadline(due, endless=True):
            while not due():
                if self._admitted():
                    train_models(organiser, self._admitted)
                time.sleep(LOOK_SECONDS)

    # ---------------------------------------------------------------------- internals

    def _of(self, name: str) -> StageConfig:
        stage: StageConfig = getattr(self.settings, name)
        return stage

    def _begin(self, name: str) -> None:
        if "opened" in self.state.get(name, {}):
            return
        waiting = f"waiting for the stage '{name}', which opens {said(self._of(name).opens)}"
        if not self._may_open(name):
            self.recorder.event(waiting)
            self.recorder.progress(waiting, 0, 1, "stage")
            if name != STAGES[0]:
                self.keep_the_door(name, "open")
            while not self._may_open(name):
                time.sleep(LOOK_SECONDS)
            self.recorder.progress(waiting, 1, 1, "stage")
        self._note(name, "opened")

    def _may_open(self, name: str) -> bool:
        return self._of(name).opens is None or self._is_due(name, "open")

    def _admitted(self) -> list[str]:
        """Let in who is there, looking every few seconds."""
        if time.monotonic() - self._opened_door < DOOR_SECONDS:
            return []
        self._opened_door = time.monotonic()
        return admit(self.organiser)

    def _is_due(self, name: str, what: What) -> bool:
        if what in self._ordered().get(name, {}):
            return True
        stage = self._of(name)
        when = stage.opens if what == "open" else stage.closes
        return isinstance(when, datetime) and datetime.now(UTC) >= when

    def _ordered(self) -> Times:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked, self._orders = (
                time.monotonic(),
                read_times(self.recorder.directory / ORDERS),
            )
        return self._orders

    def _note(self, name: str, what: str, why: str = "") -> None:
        if what not in (stage := self.state.setdefault(name, {})):
            stage[what] = timestamp()
            self.recorder.event(f"stage '{name}' {what}" + (f": {why}" if why else ""))
            self.recorder.checkpoint()
        text = json.dumps(self.state, indent=2)
        write_atomically(self.recorder.directory / STATE, text.encode())
