"""A tiny competition, and a grid that listens to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message

from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.loading import load_experiment

TINY = [
    "data.limit=160",
    "participants=[{model: softmax}, {model: mlp}, {model: cnn-tiny}]",
    "training.epochs=2",
    "themis.epochs=2",
    "themis.release.draws=2",
    "themis.examiner=null",
]


def tiny(*overrides: str) -> Experiment:
    """Return a competition of three participants that takes about a second."""
    return load_experiment("themis-digits", [*TINY, *overrides])


class ListeningGrid(InProcessGrid):
    """A grid that keeps every message it hands over, requests and replies."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: list[Message] = []
        self.replies: list[Message] = []

    def _dispatch(self, message: Message, identifier: str) -> None:
        self.requests.append(message)
        super()._dispatch(message, identifier)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Listen to the replies."""
        arrived = list(super().pull_messages(message_ids))
        self.replies += arrived
        return arrived


def rows_of(directory: Path) -> list[str]:
    """Return a run's measurements, in an order that does not depend on arrival."""
    return sorted((directory / "metrics.jsonl").read_text().splitlines())
