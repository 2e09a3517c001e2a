"""A competition in a thread of its own, whose organiser may open and close stages meanwhile."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from competition_helpers import tiny
from flwr.app import Message

from pudica.clients.app import app as client_app
from pudica.simulations.deployment.serverapp import ORGANISER_DIR
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import run
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.registry import NodeRegistry
from pudica.strategies.themis.orders import read_stages

SECONDS = 60.0


class Grid(InProcessGrid):
    """Nodes may be away, and keep what they are asked to themselves."""

    away: frozenset[int] = frozenset()
    silent: tuple[int, str] = (-1, "")
    broken: Callable[[], None] = staticmethod(lambda: None)

    def break_off(self) -> None:
        """Be gone."""

        def gone() -> None:
            raise ConnectionError("the server is gone")

        self.broken = gone  # type: ignore[method-assign]

    def get_node_ids(self) -> list[int]:
        """Return who is there."""
        self.broken()
        return [node for node, place in self.partition.items() if place not in self.away]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Leave out what is kept."""
        self.broken()
        node, kind = self.silent
        waiting = list(self._waiting)
        kept = [
            pair
            for pair in waiting
            if self.partition[pair[1].metadata.dst_node_id] == node
            and pair[1].metadata.message_type == kind
        ]
        for pair in kept:
            self._waiting.remove(pair)
        return super().pull_messages(message_ids)


class Running:
    """A competition in a thread of its own."""

    def __init__(
        self,
        directory: Path,
        *overrides: str,
        nodes: int | None = None,
        begin: bool = True,
        **grid: Any,
    ) -> None:
        self.directory = directory
        experiment = tiny(*overrides)
        config = build_run_config(experiment, directory, "inprocess")
        self.grid = Grid(client_app, nodes or len(experiment.names()), config)
        for name, value in grid.items():
            setattr(self.grid, name, value)
        build_server_context(config)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(experiment,), daemon=True)
        if begin:
            self.begin()

    def begin(self) -> None:
        """Let it run."""
        self.thread.start()

    def _run(self, experiment: Any) -> None:
        try:
            place = os.environ.get(ORGANISER_DIR)
            registry = NodeRegistry(Path(place)) if place else None
            run(self.grid, experiment, Recorder(self.directory, experiment, "inprocess"), registry)
        except BaseException as error:
            self.error = error

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert self.thread.is_alive(), self.error
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stands(self, stage: str, what: str) -> bool:
        """Tell whether a stage was opened, or closed."""
        return what in read_stages(self.directory).get(stage, {})

    def ended(self) -> Path:
        """Wait for the end; return the run's directory."""
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error
        return self.directory


def trained(directory: Path) -> set[str]:
    """Return whose own models are trained."""
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = (json.loads(line) for line in lines if line.endswith("\n"))  # the last may be half there
    return {
        r["node"] for r in rows if (r["stage"], r["metric"]) == ("local", "validation_accuracy")
    }
