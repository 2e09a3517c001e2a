"""The cloud trains: owners send their disguised images, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict

from clients import protocol
from clients.data import ImageSet
from clients.data.decoding import allocate
from models import optimizers
from models.packing import all_finite, under
from models.training import Training
from strategies.dlmt.learning import Learning
from strategies.dlmt.session import Session

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
        values = int(np.prod(session.image)) * session.span.on_disk.itemsize
        self.each = max(1, MESSAGE_BYTES // values)
        self.labels = np.zeros(starts[-1], np.int64)
        self.images = allocate(
            file_of(session),
            (int(starts[-1]), *session.image),
            session.span.type_name,
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
        first = {name: self._next(name) for name in self.counts if name in self.session.owners}
        self.session.exchanges.converse(protocol.IMAGES, first, lambda c: c, self._keep)
        missing = [name for name, count in self.counts.items() if self.got[name] < count]
        whole = len(self.counts) - len(missing)
        self.session.exchanges.need(len(self.counts), whole, protocol.IMAGES)
        return Received(self.images, self.labels)

    def _next(self, name: str) -> RecordDict:
        count = min(self.each, self.counts[name] - self.got[name])
        return self.session.request({"start": self.got[name], "count": count})

    def _keep(self, name: str, content: RecordDict) -> RecordDict | None:
        count = min(self.each, self.counts[name] - self.got[name])
        try:
            images, labels = self._admitted(protocol.arrays_of(content), count)
        except (KeyError, ValueError) as error:
            self.session.exchanges.reject(name, f"{protocol.IMAGES}: {error}")
            return None
        start = self.starts[name] + self.got[name]
        self.images[start : start + count], self.labels[start : start + count] = images, labels
        self.got[name] += count
        done, total = sum(self.got.values()), len(self.labels)
        self.session.recorder.progress(f"images ({self.session.case})", done, total, "image")
        return self._next(name) if self.got[name] < self.counts[name] else None

    def _admitted(self, arrays: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels, span = arrays["images"], arrays["labels"], self.session.span
        wanted = (count, *self.session.image)
        if images.shape != wanted or images.dtype != self.images.dtype:
            raise ValueError(
                f"images of shape {images.shape} and type {images.dtype}, {wanted} of "
                f"{self.images.dtype} were asked for"
            )
        if span.kind == "numbers":
            if not all_finite(torch.from_numpy(images)):
                raise ValueError("images with NaN or infinity")
        elif not span.low <= images.min() <= images.max() <= span.high:
            raise ValueError(f"values outside {span.low} to {span.high}")
        protocol.check_labels(labels, count, self.session.classes)
        return images, labels


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
        state = optimizers.state_of(self.training.optimizer).items()
        return {f"optimizer/{name}": value for name, value in state}

    def restore(self, tensors: dict[str, torch.Tensor], done: int) -> None:  # noqa: ARG002
        """Put the optimiser's state back."""
        optimizers.restore(self.training.optimizer, under("optimizer/", tensors))
