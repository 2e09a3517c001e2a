"""A small run of FaceMix, and what is found in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from competition_helpers import ListeningGrid
from flwr.app import Message
from split_helpers import asked

from pudica.clients import protocol
from pudica.clients.assignments import parse_assignment as assignment_of
from pudica.clients.facemix.assigned import AssignedEdge
from pudica.clients.runtime.vault import Vault
from pudica.strategies.facemix.experiment import FacemixExperiment
from pudica.strategies.loading import load_experiment

TINY = [
    "data.limit=120",
    "data.attributes=['label=3', 'label:5-9']",
    "facemix.cases={}",
    "facemix.edges=2",
    "facemix.model=cnn-tiny",
    "facemix.pre='1'",
    "facemix.post='4'",
    "facemix.request=7",
    "facemix.training={epochs: 2, batch_size: 16}",
]
SPLIT = ("facemix.train=split", "data.normalize=none")


def tiny(*overrides: str) -> FacemixExperiment:
    experiment = load_experiment("facemix-digits", [*TINY, *overrides])
    assert isinstance(experiment, FacemixExperiment)
    return experiment


def edges_of(grid: ListeningGrid, place: Path) -> list[AssignedEdge]:
    """Return the edges of a run, made anew with the stages that they were given."""
    words = [protocol.words_of(message.content) for message in asked(grid, protocol.JOIN)]
    assignments = [assignment_of(str(each["assignment"])) for each in words]
    edges = [AssignedEdge(Vault(place / str(a.partition)), a) for a in assignments]  # type: ignore[arg-type]
    arrays = protocol.arrays_of(asked(grid, protocol.ADOPT)[-1].content)
    for edge in edges:
        edge.adopt({name: torch.from_numpy(values) for name, values in arrays.items()})
    return edges


def first_of(grid: ListeningGrid, kind: str) -> Message:
    """Return the first request of a kind."""
    return next(m for m in grid.requests if m.metadata.message_type == kind)


def arrays_in(message: Message) -> dict[str, torch.Tensor]:
    """Return what a message carries."""
    arrays = protocol.arrays_of(message.content).items()
    return {name: torch.from_numpy(values.copy()) for name, values in arrays}


def counted(grid: ListeningGrid) -> dict[int, np.ndarray]:
    """Return what each edge counted, by its node."""
    return {
        message.metadata.src_node_id: protocol.arrays_of(message.content)["counts"]
        for message in grid.replies
        if message.metadata.message_type == protocol.COUNTS
    }


def counts_of(grid: ListeningGrid) -> np.ndarray:
    """Return what all edges said in the end of how often they were right."""
    return np.sum([*counted(grid).values()], axis=0)
