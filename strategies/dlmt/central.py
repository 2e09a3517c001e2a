"""The cloud trains: owners send their disguised images, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict

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
        self.got = dict.fromkeys(self.counts, 0)
        values = int(np.prod(session.image)) * session.span.storage_dtype.itemsize
        self.each = max(1, MESSAGE_BYTES // values)
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
            If one has not sent all: without it the images would be others than were asked for.
        """
        first = {name: self._next(name) for name in self.counts if name in self.session.members}
        stream = self.session.cohort.stream(protocol.IMAGES, first, self._read)
        for name, received in stream:
            if request := self._keep(name, received):
                stream.send({name: request})
        missing = [name for name, count in self.counts.items() if self.got[name] < count]
        whole = len(self.counts) - len(missing)
        self.session.cohort.require_min_replies(len(self.counts), whole, protocol.IMAGES)
        return Received(self.images, self.labels)

    def _count(self, name: str) -> int:
        """Return how many images an owner is to send next."""
        return min(self.each, self.counts[name] - self.got[name])

    def _next(self, name: str) -> RecordDict:
        return self.session.request({"start": self.got[name], "count": self._count(name)})

    def _keep(self, name: str, said: Received) -> RecordDict | None:
        start = self.starts[name] + self.got[name]
        own = slice(start, start + len(said.labels))
        self.images[own], self.labels[own] = said.images, said.labels
        self.got[name] += len(said.labels)
        done, total = sum(self.got.values()), len(self.labels)
        self.session.recorder.progress(f"images ({self.session.case})", done, total, "image")
        return self._next(name) if self.got[name] < self.counts[name] else None

    def _read(self, name: str, content: RecordDict) -> Received:
        """Return what an owner sent, if it is what was asked for."""
        count, span = self._count(name), self.session.span
        shape = (count, *self.session.image)
        images = protocol.array_of(content, "images", shape, span.storage_dtype_name)
        if span.kind != "numbers" and not span.low <= images.min() <= images.max() <= span.high:
            raise ValueError(f"values outside {span.low} to {span.high}")
        return Received(images, protocol.labels_of(content, "labels", count, self.session.classes))


def file_of(session: Session) -> Path:
    """Return where the images of a case lie while it trains."""
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

    def run_round(self, number: int) -> float:
        """Train one epoch."""
        self.training.epoch = number
        self.training.train_epoch(self.images)
        return self.training.losses[-1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state."""
        state = optimizers.optimizer_state(self.training.optimizer).items()
        return {f"optimizer/{name}": value for name, value in state}

    def restore(self, tensors: dict[str, torch.Tensor], done: int) -> None:  # noqa: ARG002
        """Put the optimiser's state back."""
        optimizers.load_optimizer_state(
            self.training.optimizer, select_prefix("optimizer/", tensors)
        )
