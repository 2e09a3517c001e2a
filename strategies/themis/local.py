"""Local training: every participant trains its private model, each at its own pace."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.strategies.themis.organiser import Organiser
from pudica.strategies.themis.release import VARIANTS, select_variant


def train_models(organiser: Organiser, admit: Callable[[], list[str]] | None = None) -> None:
    """Train all models of all cases; a participant that fails is out of the competition.

    Parameters
    ----------
    admit : callable, optional
        Lets others in meanwhile, whose models are then trained too.
    """
    for variant in VARIANTS:
        LocalTraining(organiser, variant).run(admit)
    cohort, recorder = organiser.cohort, organiser.recorder
    cohort.nodes = {
        name: node for name, node in cohort.nodes.items() if recorder.is_finished(f"local/{name}")
    }


def require_models(organiser: Organiser) -> None:
    """Raise TooFewParticipants unless enough participants have a trained model."""
    cohort = organiser.cohort
    cohort.require_min_replies(
        organiser.settings.min_participants, len(cohort.nodes), protocol.LOCAL
    )


class EpochReport(NamedTuple):
    """What a participant says of some epochs: losses and accuracies have one entry for each.

    A model that was trained elsewhere has one accuracy and no loss. ``best`` is the best accuracy
    so far.
    """

    losses: list[float]
    accuracies: list[float]
    best: float
    finished: bool

    @classmethod
    def read(cls, content: RecordDict, max_epochs: int) -> EpochReport:
        """Return what a reply says.

        Raises
        ------
        KeyError, ValueError
            If it makes no sense, or is about more epochs than were asked for.
        """
        arrays = protocol.arrays_of(content)
        series: dict[str, list[float]] = {}
        for name, greatest in (("losses", protocol.LARGEST), ("accuracies", 1.0)):
            values = arrays[name]
            if values.ndim != 1 or len(values) > max_epochs or values.dtype != np.float64:
                raise ValueError(f"{name} of shape {values.shape} and type {values.dtype}")
            if not ((values >= 0) & (values <= greatest)).all():
                raise ValueError(f"{name} outside 0 to {greatest:g}")
            series[name] = values.tolist()
        losses, accuracies = series["losses"], series["accuracies"]
        if not accuracies or len(losses) not in (0, len(accuracies)):
            raise ValueError(f"{len(losses)} losses and {len(accuracies)} accuracies")
        best = protocol.number_of(content, "best", max(accuracies), 1.0)
        finished = bool(protocol.count_of(content, "finished", 1))
        if not losses and not finished:
            raise ValueError("no losses, and not finished")
        return cls(losses, accuracies, best, finished)


class LocalTraining:
    """The training of all models of one variant, some epochs per message."""

    def __init__(self, organiser: Organiser, variant: str) -> None:
        self.organiser = organiser
        self.recorder = organiser.recorder
        self.variant = variant
        # By node: the model's name on the leaderboard, epochs in all, epochs so far.
        self.names: dict[str, str] = {}
        self.scheduled: dict[str, int] = {}
        self.epochs: dict[str, int] = {}

    def run(self, admit: Callable[[], list[str]] | None = None) -> None:
        """Ask for epochs until every participant has finished."""
        cohort = self.organiser.cohort
        stream = cohort.stream_batched(protocol.LOCAL, self._start(), self._read)
        for replies in stream:
            next_requests = {node: self._record(node, report) for node, report in replies.items()}
            stream.send({node: r for node, r in next_requests.items() if r is not None})
            if admit and admit():
                stream.send(self._start())

    def _start(self) -> dict[str, RecordDict]:
        """Return the requests to new participants whose models are not trained yet."""
        experiment = self.organiser.experiment
        names = select_variant(self.organiser.contestants(), self.variant)
        new = {node: name for node, name in names.items() if node not in self.names}
        self.names |= new
        for participant in experiment.participants:
            schedule = participant.training or experiment.training
            self.scheduled[participant.name] = schedule.epochs
        for node, name in new.items():
            self.epochs[node] = self.recorder.position(f"local/{name}").get("epoch", 0)
        return {node: self._request(node) for node in new if not self._is_finished(node)}

    def _is_finished(self, node: str) -> bool:
        return self.recorder.is_finished(f"local/{self.names[node]}")

    def _request(self, node: str) -> RecordDict:
        since = self.epochs[node]
        return self.organiser.request(self.variant, since=since, epoch=self._next_stop(node))

    def _next_stop(self, node: str) -> int:
        """Return after which epoch a participant is to reply."""
        most = self.epochs[node] + self.organiser.settings.epochs_per_message
        return min(most, self.scheduled[node])

    def _read(self, node: str, content: RecordDict) -> EpochReport:
        return EpochReport.read(content, self._next_stop(node) - self.epochs[node])

    def _record(self, node: str, report: EpochReport) -> RecordDict | None:
        """Record epochs and return the request for the next ones, if there are any."""
        name = self.names[node]
        for loss, accuracy in zip_longest(report.losses, report.accuracies):
            self.epochs[node] += 1
            for metric, value in (("loss", loss), ("accuracy", accuracy)):
                if value is not None:
                    self.recorder.log("local", metric, value, node=name, round=self.epochs[node])
        finished = report.finished or self.epochs[node] >= self.scheduled[node]
        if finished:
            self.recorder.log("local", "validation_accuracy", report.best, node=name)
            self.recorder.finish(f"local/{name}")
        else:
            self.recorder.save_checkpoint(f"local/{name}", {}, epoch=self.epochs[node])
        self._show_progress()
        return None if finished else self._request(node)

    def _show_progress(self) -> None:
        total = sum(self.scheduled[node] for node in self.names)
        done = sum(
            self.scheduled[node] if self._is_finished(node) else self.epochs[node]
            for node in self.names
        )
        suffix = "" if self.variant == "honest" else f" ({self.variant})"
        self.recorder.progress(f"local training{suffix}", done, total, "epoch")
