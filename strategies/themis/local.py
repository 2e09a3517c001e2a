"""Local training: every participant trains its private model, each at its own pace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.models.training import TrainingConfig
from pudica.strategies.themis.organiser import Organiser
from pudica.strategies.themis.release import VARIANTS, of_variant


def train_models(organiser: Organiser, door: Callable[[], object] | None = None) -> None:
    """Train all models of all cases; a participant that fails is out of the competition.

    Parameters
    ----------
    door : callable, optional
        Lets others in meanwhile, whose models are then trained too.
    """
    for variant in VARIANTS:
        LocalTraining(organiser, variant).run(door)
    cohort, recorder = organiser.cohort, organiser.recorder
    cohort.nodes = {
        name: node for name, node in cohort.nodes.items() if recorder.is_finished(f"local/{name}")
    }


def need_models(organiser: Organiser) -> None:
    """See that enough participants have a trained model.

    Raises
    ------
    TooFewParticipants
        If not.
    """
    cohort = organiser.cohort
    cohort.require_min_replies(
        organiser.settings.min_participants, len(cohort.nodes), protocol.LOCAL
    )


class Trained(NamedTuple):
    """What a participant says of some epochs.

    Attributes
    ----------
    losses, accuracies : list of float
        Of each epoch. A model that was trained elsewhere has an accuracy alone.
    best : float
        The best accuracy so far.
    finished : bool
    """

    losses: list[float]
    accuracies: list[float]
    best: float
    finished: bool

    @classmethod
    def read(cls, content: RecordDict, most: int) -> Trained:
        """Return what a reply says.

        Raises
        ------
        KeyError, ValueError
            If it makes no sense, or is of more epochs than it was asked for.
        """
        arrays = protocol.arrays_of(content)
        losses = _of_epochs(arrays, "losses", most, protocol.LARGEST)
        accuracies = _of_epochs(arrays, "accuracies", most, 1.0)
        if not accuracies or len(losses) not in (0, len(accuracies)):
            raise ValueError(f"{len(losses)} losses and {len(accuracies)} accuracies")
        best = protocol.number_of(content, "best", max(accuracies), 1.0)
        finished = bool(protocol.count_of(content, "finished", 1))
        if not losses and not finished:
            raise ValueError("no losses, and not finished")
        return cls(losses, accuracies, best, finished)


def _of_epochs(
    arrays: Mapping[str, np.ndarray], name: str, most: int, greatest: float
) -> list[float]:
    """Return one number of each of at most so many epochs, from 0 to the greatest there can be."""
    values = arrays[name]
    if values.ndim != 1 or len(values) > most or values.dtype != np.float64:
        raise ValueError(f"{name} of shape {values.shape} and type {values.dtype}")
    if not ((values >= 0) & (values <= greatest)).all():
        raise ValueError(f"{name} outside 0 to {greatest:g}")
    numbers: list[float] = values.tolist()
    return numbers


class LocalTraining:
    """The training of all models of one variant, some epochs per message.

    Parameters
    ----------
    organiser : Organiser
    variant : {"honest", "cheating"}
    """

    def __init__(self, organiser: Organiser, variant: str) -> None:
        self.organiser = organiser
        self.recorder = organiser.recorder
        self.variant = variant
        self.names: dict[str, str] = {}
        self.schedule: dict[str, TrainingConfig] = {}
        self.epochs: dict[str, int] = {}

    def _left(self) -> dict[str, RecordDict]:
        """Return the requests to those who are new, and whose model is not trained yet."""
        experiment = self.organiser.experiment
        names = of_variant(self.organiser.contestants(), self.variant)
        new = {node: name for node, name in names.items() if node not in self.names}
        self.names |= new
        self.schedule = {p.name: p.training or experiment.training for p in experiment.participants}
        for node, name in new.items():
            self.epochs[node] = self.recorder.position(f"local/{name}").get("epoch", 0)
        left = [
            node for node, name in new.items() if not self.recorder.is_finished(f"local/{name}")
        ]
        return {node: self._next_epochs(node) for node in left}

    def run(self, door: Callable[[], object] | None = None) -> None:
        """Ask for epochs until every participant says that it is finished."""
        cohort = self.organiser.cohort
        stream = cohort.stream_batched(protocol.LOCAL, self._left(), self._read)
        for replies in stream:
            following = {node: self._note(node, trained) for node, trained in replies.items()}
            stream.send({node: r for node, r in following.items() if r is not None})
            if door and door():
                stream.send(self._left())

    def _next_epochs(self, node: str) -> RecordDict:
        since = self.epochs[node]
        return self.organiser.request(self.variant, since=since, epoch=self._until(node))

    def _until(self, node: str) -> int:
        """Return after how many epochs a participant is to answer."""
        most = self.epochs[node] + self.organiser.settings.epochs_per_message
        return min(most, self.schedule[node].epochs)

    def _read(self, node: str, content: RecordDict) -> Trained:
        return Trained.read(content, self._until(node) - self.epochs[node])

    def _note(self, node: str, trained: Trained) -> RecordDict | None:
        """Record epochs and return the request for the next ones, if there are any."""
        name = self.names[node]
        for loss, accuracy in zip_longest(trained.losses, trained.accuracies):
            self.epochs[node] += 1
            for metric, value in (("loss", loss), ("accuracy", accuracy)):
                if value is not None:
                    self.recorder.log("local", metric, value, node=name, round=self.epochs[node])
        finished = trained.finished or self.epochs[node] >= self.schedule[node].epochs
        if finished:
            self.recorder.log("local", "validation_accuracy", trained.best, node=name)
            self.recorder.finish(f"local/{name}")
        else:
            self.recorder.save_checkpoint(f"local/{name}", {}, epoch=self.epochs[node])
        self._show()
        return None if finished else self._next_epochs(node)

    def _show(self) -> None:
        total = sum(self.schedule[node].epochs for node in self.names)
        done = sum(
            self.schedule[node].epochs
            if self.recorder.is_finished(f"local/{name}")
            else self.epochs[node]
            for node, name in self.names.items()
        )
        suffix = "" if self.variant == "honest" else f" ({self.variant})"
        self.recorder.progress(f"local training{suffix}", done, total, "epoch")
