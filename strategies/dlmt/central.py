"""The cloud trains: owners send their disguised images, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.clients.data.decoding import allocate
from pudica.models import optimizers
from pudica.models.packing import select_prefix
from pudica.models.training import Training
from pudica.strategies.dlmt.learning import Learning
from pudica.strategies.dlmt.session import Session

MESSAGE_BYTES = 2**23
"""Of images in a message, about."""


@dataclass(frozen=True)
class Received:
    """What owners sent: images (N, C, H, W) on disk, and labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Collection:
    """The owners' disguised images, gathered into one file.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        # All that were there as the case was begun: a resumed run has the same images.
        self.counts = session.begun_with
        starts = np.cumsum([0, *self.counts.values()])
        self.starts = dict(zip(self.counts, starts.tolist(), strict=False))
        self.received = dict.fromkeys(self.counts, 0)
        image_bytes = int(np.prod(session.image)) * session.span.storage_dtype.itemsize
        self.batch = max(1, MESSAGE_BYTES // image_bytes)
        self.labels = np.zeros(starts[-1], np.int64)
        self.images = allocate(
            file_of(session),
            (int(starts[-1]), *session.image),
            session.span.storage_dtype_name,
            hint="free some space, and resume the run",
            mode=0o600,
        )

    def gather(self) -> Received:
        """Ask every owner for all of its training images.

        Raises
        ------
        TooFewParticipants
            If one has not sent all: training on the others would be another experiment.
        """
        cohort, owners = self.session.cohort, self.session.members
        first = {name: self._request_next(name) for name in self.counts if name in owners}
        stream = cohort.stream(protocol.IMAGES, first, self._read)
        for name, received in stream:
            self._store(name, received)
            if self.received[name] < self.counts[name]:
                stream.send({name: self._request_next(name)})
        complete = sum(self.received[name] == count for name, count in self.counts.items())
        cohort.require_min_replies(len(self.counts), complete, protocol.IMAGES)
        return Received(self.images, self.labels)

    def _count_next(self, name: str) -> int:
        return min(self.batch, self.counts[name] - self.received[name])

    def _request_next(self, name: str) -> RecordDict:
        wanted = {"start": self.received[name], "count": self._count_next(name)}
        return self.session.request(wanted)

    def _store(self, name: str, received: Received) -> None:
        start = self.starts[name] + self.received[name]
        rows = slice(start, start + len(received.labels))
        self.images[rows], self.labels[rows] = received.images, received.labels
        self.received[name] += len(received.labels)
        done, total = sum(self.received.values()), len(self.labels)
        self.session.recorder.progress(f"images ({self.session.case})", done, total, "image")

    def _read(self, name: str, content: RecordDict) -> Received:
        """Return what an owner sent, if it is what was asked for."""
        count, span = self._count_next(name), self.session.span
        shape = (count, *self.session.image)
        images = protocol.array_of(content, "images", shape, span.storage_dtype_name)
        if span.kind != "numbers" and not span.low <= images.min() <= images.max() <= span.high:
            raise ValueError(f"values outside {span.low} to {span.high}")
        return Received(images, protocol.labels_of(content, "labels", count, self.session.classes))


def file_of(session: Session) -> Path:
    """Return the file that holds the images of a case while it trains."""
    return session.recorder.artefact(f"{session.case}/received.npy")


class Central(Learning):
    """SGD on all owners' images.

    Parameters
    ----------
    session : Session
    received : Received
    """

    unit = "epoch"

    def __init__(self, session: Session, received: Received) -> None:
        super().__init__(session)
        mean, std = torch.from_numpy(session.normalisation)[:, :, None, None]
        self.images = ImageSet(
            received.images,
            np.arange(len(received.labels)),
            received.labels,
            mean,
            std,
            session.classes,
            stored=session.span,
        )
        seed = session.seed_of(0)
        self.training = Training(self.model, self.settings.training, seed, session.compute)

    def configure_train(
        self,
        server_round: int,  # noqa: ARG002
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,
    ) -> Iterable[Message]:
        """Ask nobody: the images are here."""
        self.prepare(grid, arrays)
        return []

    def aggregate_train(
        self,
        server_round: int,
        replies: Iterable[Message],  # noqa: ARG002
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train one epoch."""
        self.training.epoch = server_round - 1
        self.training.train_epoch(self.images)
        self.loss = self.training.losses[-1]
        metrics = self.step_done()
        return self.new_arrays(), metrics

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state."""
        state = optimizers.optimizer_state(self.training.optimizer).items()
        return {f"optimizer/{name}": value for name, value in state}

    def restore(self, tensors: Mapping[str, torch.Tensor], done: int) -> None:  # noqa: ARG002
        """Load the optimiser's state."""
        optimizers.load_optimizer_state(
            self.training.optimizer, select_prefix("optimizer/", tensors)
        )
