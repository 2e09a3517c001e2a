"""What the two ways to train across a cut share: their parts, what they accept, their place."""

from __future__ import annotations

from typing import Any

from flwr.app import RecordDict

from pudica.strategies.split.cloud import Chunk, Cloud, admitted
from pudica.strategies.split.costs import SKIPPED
from pudica.strategies.split.fronts import Fronts
from pudica.strategies.split.session import Session


class Stage:
    """The training of one case.

    Parameters
    ----------
    session : Session
    cloud : Cloud
    fronts : Fronts
    shape : tuple of int
        Of one example's activation.
    """

    def __init__(
        self, session: Session, cloud: Cloud, fronts: Fronts, shape: tuple[int, ...]
    ) -> None:
        self.session = session
        self.settings = session.settings
        self.recorder = session.recorder
        self.cohort = session.cohort
        self.cloud = cloud
        self.fronts = fronts
        self.shape = shape
        self.costs = session.costs
        self.task = session.task("training")

    def admitted(self, content: RecordDict, sizes: list[int]) -> Chunk:
        """Return what a device sent of batches of these sizes; errors as of ``cloud.admitted``."""
        grid = self.fronts.front.shield.grid
        return admitted(content, sizes, self.shape, self.settings.wire, self.session.classes, grid)

    def accept(self, name: str, chunk: Chunk) -> None:
        """Note what a device spent on what it sent."""
        if chunk.seconds.get(SKIPPED):
            self.recorder.event(f"{name} began anew since: a gradient was of no use to it")
        self.costs.spent(name, chunk.seconds, len(chunk.sizes))

    def stand(self, **position: Any) -> None:
        """Write down where the training stands, for a run that is killed."""
        tensors = {**self.cloud.tensors(), **self.fronts.tensors()}
        self.recorder.forget(self.task)
        kept = {f"{self.task}/{key}": value for key, value in tensors.items()}
        self.recorder.save_checkpoint(self.task, kept, fronts=self.fronts.note(), **position)
