"""Encryption-aware training (§3.4 of paper 003): the model learns behind its own shield."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from pudica.clients.facemix.training import augmented, batch_rows
from pudica.clients.protocol import batch_sizes
from pudica.models import optimizers
from pudica.models.attributes import (
    attribute_loss,
    compute_accuracies,
    compute_balanced_accuracies,
    compute_balancing_weights,
    count_confusions,
    predict_answers,
)
from pudica.models.errors import RequestError
from pudica.models.packing import select_prefix
from pudica.models.randomness import has_random_layers, numpy_generator, seed_random_layers
from pudica.strategies.facemix.session import Session

TRAINING = "training"
RATES = {"accuracy": compute_accuracies, "balanced_accuracy": compute_balanced_accuracies}


def log_rates(session: Session, stage: str, counts: torch.Tensor, round_: int, **tags: str) -> None:
    """Log accuracy and balanced accuracy of each attribute, and their means.

    Parameters
    ----------
    counts : int64 tensor of shape (A, 2, 2)
        As of :func:`pudica.models.attributes.count_confusions`.
    """
    for metric, rate in RATES.items():
        each = rate(counts)
        for name, value in zip(session.data.attributes, each.tolist(), strict=True):
            if math.isfinite(value):
                session.log(stage, metric, value, round=round_, attribute=name, **tags)
        if torch.isfinite(each).any():
            session.log(stage, metric, float(each.nanmean()), round=round_, **tags)


class Learning(ABC):
    """The training of one case, which can stop after any epoch and go on.

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.model = session.model
        self.training = session.settings.training
        self.recorder = session.recorder
        self.drawing = has_random_layers(session.model)
        self.task = session.task(TRAINING)
        built = optimizers.build(self.training.optimizer, self.model.parameters())
        assert built is not None
        self.optimizer = built

    def train(self) -> None:
        """Train to the end, from wherever a run that was stopped had got to."""
        done, epochs = self._restore(), self.training.epochs
        while done < epochs:
            optimizers.set_learning_rate(self.optimizer, self.training.rate(done))
            loss = self.run_epoch(done)
            done += 1
            if not math.isfinite(loss):
                raise RequestError(
                    f"training diverged in epoch {done}, the loss is {loss}; lower "
                    f"training.optimizer.learning_rate"
                )
            self.session.log(TRAINING, "loss", loss, round=done)
            if self.session.settings.evaluates(done):
                self.validate(done)
            self.recorder.progress(f"training ({self.session.case})", done, epochs, "epoch")
            if self.recorder.is_checkpoint_due():
                self.recorder.save_checkpoint(self.task, self._tensors(optimizer=True), done=done)
        self.recorder.arrays |= self._tensors(optimizer=False)
        self.recorder.finish(self.task)

    @abstractmethod
    def run_epoch(self, epoch: int) -> float:
        """Train for an epoch, counted from 0; return the mean loss."""

    def recall(self) -> None:
        """Take the model of training that is finished."""
        self.model.load_state_dict(select_prefix(f"{self.task}/model/", self.recorder.arrays))

    @abstractmethod
    def validate(self, done: int) -> None:
        """Measure after so many epochs, if there is something to measure with."""

    def _tensors(self, optimizer: bool) -> dict[str, torch.Tensor]:
        kept = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        state = optimizers.optimizer_state(self.optimizer) if optimizer else {}
        kept |= {f"optimizer/{key}": value for key, value in state.items()}
        return {f"{self.task}/{key}": value for key, value in kept.items()}

    def _restore(self) -> int:
        position: dict[str, Any] = self.recorder.position(self.task)
        if not position:
            return 0
        self.recall()
        optimizers.load_optimizer_state(
            self.optimizer, select_prefix(f"{self.task}/optimizer/", self.recorder.arrays)
        )
        return int(position["done"])


@torch.no_grad()
def measured(session: Session, shielded: bool) -> torch.Tensor:
    """Return how the model answers on the cloud's validation images, (A, 2, 2)."""
    images, size = session.data.validation, session.settings.training.batch_size
    model = session.model.eval()
    counts = torch.zeros(len(session.data.attributes), 2, 2, dtype=torch.int64)
    for number, start in enumerate(range(0, len(images), size)):
        part = slice(start, start + size)
        x, _ = images.batch(part)
        key = numpy_generator(session.seed, "validation", number)
        model.randomness = key if shielded else None
        logits = session.compute.forward(model, session.compute.move_batch(x)).cpu()
        counts += count_confusions(
            predict_answers(logits), torch.from_numpy(images.attributes[part])
        )
    return counts


class Central(Learning):
    """The model's owner trains all stages, on images of its own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        balanced = self.training.class_weights == "balanced"
        attributes = torch.from_numpy(session.data.train.attributes)
        self._weights = compute_balancing_weights(attributes) if balanced else None

    def validate(self, done: int) -> None:
        """Measure on the cloud's validation images, with the shield and without."""
        if not len(self.session.data.validation):
            return
        for shielded in ("on", "off"):
            counts = measured(self.session, shielded == "on")
            log_rates(self.session, "validation", counts, done, shield=shielded)

    def run_epoch(self, epoch: int) -> float:
        """Train on all images once; each batch has keys of its own."""
        images, total = self.session.data.train, 0.0
        sizes = batch_sizes(len(images), self.training.batch_size)
        self.model.train()
        for number, size in enumerate(sizes):
            total += self._step(epoch, number) * size
        return total / len(images)

    def _step(self, epoch: int, number: int) -> float:
        session, images, seed = self.session, self.session.data.train, self.session.seed
        rows = batch_rows(seed, 0, epoch, number, len(images), self.training.batch_size)
        x, labels = images.batch(rows)
        x = augmented(x, images.black, self.training.augment, seed, 0, epoch, number)
        device = session.compute.device
        truth = torch.from_numpy(images.attributes[rows]).to(device)
        self.model.randomness = numpy_generator(seed, "mixing", 0, "batch", epoch, number)
        self.optimizer.zero_grad()
        with seed_random_layers(self.drawing, seed, 0, epoch, number):
            loss = self.loss(session.compute.move_batch(x), truth, labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def loss(
        self,
        x: torch.Tensor,
        attributes: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the loss of one batch; labels are for who knows what to do with them."""
        return attribute_loss(
            self.session.compute.forward(self.model, x), attributes, self._weights
        )
