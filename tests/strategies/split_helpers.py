"""A tiny experiment of split learning, and runs of it in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from competition_helpers import ListeningGrid
from flwr.app import Error, Message
from torch import nn

import pudica.clients.app
from pudica.clients.app import app as client_app
from pudica.clients.split.assigned import AssignedEdge
from pudica.models import build
from pudica.models.files import load_tensors
from pudica.models.randomness import derive
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.experiment import SplitExperiment

TINY = [
    "data.limit=96",
    "split.devices=2",
    "split.model=cnn-tiny",
    "split.cut='2'",
    "split.shield={name: none}",
    "split.batch_size=16",
    "split.epochs=2",
    "split.validate_every=0",
]


def tiny(*overrides: str) -> SplitExperiment:
    """Return an experiment of two devices with 48 images each that takes a moment."""
    experiment = load_experiment("split-digits", [*TINY, *overrides])
    assert isinstance(experiment, SplitExperiment)
    return experiment


class Interrupted(Exception):
    """The run was to be stopped here."""


class FaultyGrid(ListeningGrid):
    """A grid on which some messages fail, or that dies at one.

    Attributes
    ----------
    faults : set of (str, int, int)
        Kind, partition, and the how manieth such message (from 1) is answered by an error.
    stop : (str, int) or None
        Kind, and at the how manieth reply of it everything stops.
    """

    faults: set[tuple[str, int, int]] = set()
    stop: tuple[str, int] | None = None

    def _answer(self, message: Message) -> Message:
        kind = message.metadata.message_type
        partition = self.partition[message.metadata.dst_node_id]
        self.counts = getattr(self, "counts", {})
        for key in ((kind, partition), (kind, None)):
            self.counts[key] = self.counts.get(key, 0) + 1
        if (kind, partition, self.counts[kind, partition]) in self.faults:
            return Message(Error(1, "RuntimeError: not today"), reply_to=message)
        reply = super()._answer(message)
        if self.stop == (kind, self.counts[kind, None]):
            raise Interrupted
        return reply


def run(
    experiment: SplitExperiment,
    directory: Path,
    faults: Iterable[tuple[str, int, int]] = (),
    stop: tuple[str, int] | None = None,
) -> FaultyGrid:
    """Run an experiment, or go on with it, and return the grid that listened."""
    config = build_run_config(experiment, directory, "inprocess")
    grid = FaultyGrid(client_app, len(experiment.names()), config)
    grid.faults, grid.stop = set(faults), stop
    server_app(grid, build_server_context(config))
    return grid


def whole(experiment: SplitExperiment) -> nn.Module:
    """Return the model as training begins, not cut."""
    data, settings = experiment.load_data(), experiment.split
    channels, side, _ = data.shape
    return build(
        settings.model,
        num_classes=data.num_classes,
        channels=channels,
        image_size=side,
        seed=derive(experiment.seed, "weights"),
    )


def edges(experiment: SplitExperiment, directory: Path) -> list[AssignedEdge]:
    """Return the devices of a run of this process."""
    places = [directory / "vault" / directory.name / f"node-{i}" for i in range(9)]
    nodes = pudica.clients.app._nodes
    found = [nodes[place] for place in places if place in nodes]
    assert all(isinstance(node, AssignedEdge) for node in found)
    return found  # type: ignore[return-value]


def model_of(directory: Path, case: str = "main") -> dict[str, torch.Tensor]:
    """Return the trained model's weights."""
    kept = load_tensors(directory / case / "model.safetensors")
    assert kept is not None
    return kept[0]


def measured(directory: Path, **wanted: Any) -> list[dict[str, Any]]:
    """Return the measurements with all of these tags."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def asked(grid: ListeningGrid, kind: str) -> list[Message]:
    """Return the requests of one kind."""
    return [message for message in grid.requests if message.metadata.message_type == kind]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether tensors are equal, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def forget_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every message find a fresh process: nothing but the vault is remembered."""
    node = pudica.clients.app._node

    def forgetful(config: Any, context: Any) -> Any:
        pudica.clients.app._nodes.clear()
        return node(config, context)

    monkeypatch.setattr(pudica.clients.app, "_node", forgetful)


def bytes_of(message: Message) -> bytes:
    """Return all that a message says."""
    content = message.content
    arrays = [a.data for record in content.array_records.values() for a in record.values()]
    rest = repr((content.config_records, content.metric_records)).encode()
    return b"".join(arrays) + rest


def names_in(message: Message) -> set[str]:
    """Return what a message's values are called; of those that are lists with ``[]``."""
    return {
        f"{name}[]" if isinstance(value, list) else name
        for record in message.content.values()
        for name, value in record.items()
    }
