"""A comparator of paper 003: an anonymiser on the edge, trained against an adversary.

After Ren, Lee and Ryoo 2018: the anonymiser changes images little, so that the classifier still
sees their attributes, while an adversary who keeps learning no longer sees their ``data.label``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Message
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss, log_softmax

from pudica.clients.data import ImageSet
from pudica.models import optimizers
from pudica.models.attributes import attribute_loss
from pudica.models.packing import select_prefix
from pudica.strategies.facemix.strategy import FaceMix
from pudica.strategies.facemix.training import CentralTrainer, Trainer


class AnonymisedFaceMix(FaceMix):
    """FaceMix whose first stage is an anonymiser, trained by the owner against an adversary."""

    adversary: nn.Module
    """Tries to tell the classes of anonymised images apart."""

    def make_trainer(self) -> Trainer:
        """Return what trains anonymiser, classifier and adversary."""
        return AnonymisingTrainer(self)


class AnonymisingTrainer(CentralTrainer):
    """Training of anonymiser and classifier, and of the adversary beside them."""

    strategy: AnonymisedFaceMix

    def __init__(self, strategy: AnonymisedFaceMix) -> None:
        super().__init__(strategy)
        assert strategy.settings.anonymiser is not None
        assert isinstance(self.images, ImageSet)
        self.settings = strategy.settings.anonymiser
        self.labels = torch.from_numpy(self.images.labels)
        self.adversary = strategy.compute.move_model(strategy.adversary).train()
        training = strategy.settings.training
        optimizer = optimizers.build(training.optimizer, self.adversary.parameters())
        assert optimizer is not None
        self.optimizer = optimizer
        self.correct = 0

    def handle_replies(self, replies: Iterable[Message]) -> None:
        """Train on all images once, and log how often the adversary was right."""
        strategy, training = self.strategy, self.strategy.settings.training
        rate = training.scale_rate(training.optimizer.learning_rate, strategy.round)
        optimizers.set_learning_rate(self.optimizer, rate)
        self.correct = 0
        super().handle_replies(replies)
        share = self.correct / len(self.images)
        strategy.log(strategy.stage, "adversary_accuracy", share, round=strategy.round + 1)

    def loss(self, x: torch.Tensor, attributes: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Return the loss of the attributes, of what is given away, and of what is changed.

        The adversary makes a step first. What is given away is the cross entropy between a uniform
        guess and the adversary's, which is bounded, unlike minus its own loss.
        """
        compute, settings, model = self.strategy.compute, self.settings, self.strategy.model
        labels = self.labels[rows].to(compute.device)
        redrawn = compute.forward(model.pre, x)
        self.optimizer.zero_grad()
        guesses = compute.forward(self.adversary, redrawn.detach())
        self.correct += int((guesses.argmax(1) == labels).sum())
        cross_entropy(guesses, labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        logits = compute.forward(model.main, redrawn)
        given_away = -log_softmax(compute.forward(self.adversary, redrawn), 1).mean()
        return (
            attribute_loss(logits, attributes, self._weights)
            + settings.weight * given_away
            + settings.likeness * l1_loss(redrawn, x)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the adversary and its optimiser."""
        kept = {f"adversary/{key}": value for key, value in self.adversary.state_dict().items()}
        state = optimizers.optimizer_state(self.optimizer)
        return kept | {f"adversarys/{key}": value for key, value in state.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the adversary and its optimiser from a checkpoint."""
        self.adversary.load_state_dict(select_prefix("adversary/", tensors))
        state = select_prefix("adversarys/", tensors)
        optimizers.load_optimizer_state(self.optimizer, state)
