"""What training at the cloud and at the owners have in common: rounds, measurements, stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from pudica import models
from pudica.models.packing import load_model_arrays, model_arrays, select_prefix
from pudica.models.randomness import derive
from pudica.strategies.dlmt.measures import DISGUISED, count_right
from pudica.strategies.dlmt.session import Model, Session

TRAINING = "training"


class Learning(ABC):
    """The training of one case, which can stop after any round and go on.

    Parameters
    ----------
    session : Session
    """

    unit: ClassVar[str]

    def __init__(self, session: Session) -> None:
        self.session = session
        self.settings = session.settings
        self.recorder = session.recorder
        self.task = session.task(TRAINING)
        channels, side, _ = session.image
        self.model: nn.Module = models.build(
            self.settings.model,
            num_classes=session.classes,
            channels=channels,
            image_size=side,
            seed=derive(session.experiment.seed, "weights"),
        )

    def train(self) -> None:
        """Train to the end, from wherever a run that was stopped had got to."""
        done = self._restore()
        rounds = self.settings.rounds
        while done < rounds:
            loss = self.run_round(done)
            done += 1
            self.session.log(TRAINING, "loss", loss, round=done)
            if self.settings.evaluates(done):
                self._measure(done)
            self.session.note_dropouts(TRAINING, done)
            self.recorder.progress(f"training ({self.session.case})", done, rounds, self.unit)
            if self.recorder.is_checkpoint_due():
                self._stand(done)
        self.recorder.arrays |= self._named(self._model_tensors())
        self.recorder.finish(self.task)

    @abstractmethod
    def run_round(self, number: int) -> float:
        """Train for one epoch or round, counted from 0; return the mean loss."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the next round depends on besides the model."""

    @abstractmethod
    def restore(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Go on from what :meth:`tensors` returned, after so many rounds."""

    def trained(self) -> Model:
        """Return the model as it travels, with what images are normalised by."""
        return {**model_arrays(self.model), "normalisation": self.session.normalisation}

    def recall(self) -> None:
        """Take the model of training that is finished."""
        load_model_arrays(self.model, select_prefix(f"{self.task}/model/", self.recorder.arrays))

    def _measure(self, done: int) -> None:
        model = self.trained()
        for part in ("validation", "test"):
            counted = count_right(self.session, model, part, DISGUISED)
            counted.log(self.session, part, "accuracy", done)

    # --------------------------------------------------------------------- checkpoints

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        arrays = model_arrays(self.model)
        return {f"model/{name}": torch.from_numpy(values) for name, values in arrays.items()}

    def _named(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"{self.task}/{name}": value for name, value in tensors.items()}

    def _stand(self, done: int) -> None:
        self.recorder.save_checkpoint(
            self.task, self._named(self._model_tensors() | self.tensors()), done=done
        )

    def _restore(self) -> int:
        position: dict[str, Any] = self.recorder.position(self.task)
        if not position:
            return 0
        self.recall()
        self.restore(select_prefix(f"{self.task}/", self.recorder.arrays), int(position["done"]))
        return int(position["done"])
