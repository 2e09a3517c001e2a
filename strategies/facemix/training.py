"""Encryption-aware training (§3.4 of paper 003): the model learns behind its own shield."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from flwr.app import Message, RecordDict

from pudica.clients.facemix.images import read_batch
from pudica.clients.facemix.training import augment_batch, batch_rows
from pudica.clients.protocol import batch_sizes
from pudica.models.attributes import (
    attribute_loss,
    compute_accuracies,
    compute_balanced_accuracies,
    compute_balancing_weights,
    count_confusions,
    predict_answers,
)
from pudica.models.randomness import has_random_layers, numpy_generator, seed_random_layers

if TYPE_CHECKING:
    import numpy as np

    from pudica.strategies.facemix.strategy import FaceMix

RATES = {"accuracy": compute_accuracies, "balanced_accuracy": compute_balanced_accuracies}


def log_rates(strategy: FaceMix, stage: str, counts: torch.Tensor, **tags: str) -> float:
    """Log accuracy and balanced accuracy of each attribute, and their means.

    Parameters
    ----------
    counts : int64 tensor of shape (A, K, K)
        As of :func:`pudica.models.attributes.count_confusions`.

    Returns
    -------
    float
        The mean accuracy.
    """
    for metric, rate in RATES.items():
        each = rate(counts)
        for name, value in zip(strategy.attributes, each.tolist(), strict=True):
            if math.isfinite(value):
                strategy.log(stage, metric, value, attribute=name, **tags)
        if torch.isfinite(each).any():
            strategy.log(stage, metric, float(each.nanmean()), **tags)
    return float(compute_accuracies(counts).nanmean())


class Trainer(ABC):
    """How the exchanges of an epoch become steps on the model.

    Parameters
    ----------
    strategy : FaceMix
        Whose model and optimiser it moves.
    """

    per_batch = 1
    """Exchanges that make a step together."""

    def __init__(self, strategy: FaceMix) -> None:
        self.strategy = strategy
        self.drawing = has_random_layers(strategy.model)

    @abstractmethod
    def count_exchanges(self) -> int:
        """Return how many exchanges an epoch takes."""

    @abstractmethod
    def requests(self) -> tuple[str, Mapping[str, RecordDict]]:
        """Return kind and requests of the next exchange."""

    @abstractmethod
    def take(self, replies: Iterable[Message]) -> None:
        """Take the replies, and a step where they complete a batch."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what its next step hangs on besides model and optimiser."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Put back what :meth:`tensors` returned, among other tensors."""


class CentralTrainer(Trainer):
    """The model's owner trains all stages on images of its own: an epoch is one step of the loop.

    No message is sent for it.
    """

    def __init__(self, strategy: FaceMix) -> None:
        super().__init__(strategy)
        assert strategy.images is not None
        self.images = strategy.images
        balanced = strategy.settings.training.class_weights == "balanced"
        attributes = torch.from_numpy(self.images.attributes)
        self._weights = (
            compute_balancing_weights(attributes, strategy.answers) if balanced else None
        )

    def count_exchanges(self) -> int:
        """Return 1."""
        return 1

    def requests(self) -> tuple[str, Mapping[str, RecordDict]]:
        """Return no request."""
        return "", {}

    def take(self, replies: Iterable[Message]) -> None:  # noqa: ARG002
        """Train on all images once; each batch has keys of its own."""
        strategy = self.strategy
        strategy.model.train()
        sizes = batch_sizes(len(self.images), strategy.settings.training.batch_size)
        for number, size in enumerate(sizes):
            strategy.add_loss(self._step(strategy.round, number), size)

    def _step(self, epoch: int, number: int) -> float:
        strategy, images, seed = self.strategy, self.images, self.strategy.seed
        training = strategy.settings.training
        rows = batch_rows(seed, 0, epoch, number, len(images), training.batch_size)
        x, answers = read_batch(images, rows)
        x = augment_batch(x, images.black, training.augment, seed, 0, epoch, number)
        truth = answers.to(strategy.compute.device)
        strategy.model.randomness = numpy_generator(seed, "mixing", 0, "batch", epoch, number)
        strategy.optimizer.zero_grad()
        with seed_random_layers(self.drawing, seed, 0, epoch, number):
            loss = self.loss(strategy.compute.move_batch(x), truth, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        strategy.optimizer.step()
        return float(loss.detach())

    def loss(
        self,
        x: torch.Tensor,
        attributes: torch.Tensor,
        rows: np.ndarray,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the loss of one batch; ``rows`` says which images they are."""
        logits = self.strategy.compute.forward(self.strategy.model, x)
        return attribute_loss(logits, attributes, self._weights)


@torch.no_grad()
def count_on_validation(strategy: FaceMix, shielded: bool) -> torch.Tensor:
    """Return how the model answers on the owner's validation images, (A, K, K)."""
    images, size = strategy.validation, strategy.settings.training.batch_size
    assert images is not None
    model, answers = strategy.model.eval(), strategy.answers
    counts = torch.zeros(len(strategy.attributes), answers, answers, dtype=torch.int64)
    for number, start in enumerate(range(0, len(images), size)):
        x, truth = read_batch(images, slice(start, start + size))
        key = numpy_generator(strategy.seed, "validation", number)
        model.randomness = key if shielded else None
        logits = strategy.compute.forward(model, strategy.compute.move_batch(x)).cpu()
        counts += count_confusions(predict_answers(logits, answers), truth, answers)
    return counts
