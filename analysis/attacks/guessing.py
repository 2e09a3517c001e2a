"""Networks that are trained on what the cloud sees: for attributes, and for people (§4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.analysis.attacks.view import View, in_parts, mean
from pudica.clients.data import ImageSet
from pudica.clients.shields.front import activation_shape
from pudica.models.attributes import attribute_loss, compute_balancing_weights
from pudica.models.randomness import derive, temporary_seed

LEARNING_RATE = 1e-3
BATCH = 64


@dataclass(frozen=True)
class Guess:
    """How often an attacker is right.

    Attributes
    ----------
    rates : dict of str to float
        Of each attribute, balanced over yes and no; or of each person; 0 to 1.
    chance : float
        Of somebody who guesses blindly.
    taken_for : dict of int to int
        Of people: whom each image was taken for, as far as it crossed.
    """

    rates: Mapping[str, float]
    chance: float
    taken_for: Mapping[int, int] = field(default_factory=dict)

    @property
    def success(self) -> float:
        """The mean over attributes, or over people."""
        return mean(self.rates)


Loss = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def guess_attributes(view: View, epochs: int, seed: int) -> Guess:
    """Train a copy of the cloud's stages to tell the attributes of the image in each row.

    Parameters
    ----------
    epochs : int
        Over the training part, each time behind new keys.
    """
    attributes = torch.from_numpy(view.known.attributes)
    # It is judged by classes: a rare answer is to count as much as a common one.
    weights = compute_balancing_weights(attributes)

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        return attribute_loss(logits, attributes[images].to(logits.device), weights)

    network = _trained(view, view.classifier(), view.known, loss, epochs, seed)
    return Guess(view.rates(_told(view, network, view.data.test, seed)), 0.5)


def guess_identity(view: View, known: ImageSet, unknown: ImageSet, epochs: int, seed: int) -> Guess:
    """Train a copy of the cloud's stage to tell who is in each row.

    Parameters
    ----------
    known, unknown : ImageSet
        Images of the same people, whose labels say who it is: to learn from, and to be attacked.
        Normalised as the model's.
    """
    main = view.trunk()
    features = activation_shape(main, view.model.shield.shape)
    with temporary_seed(derive(seed, "head")):
        head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(features), known.num_classes))

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        people = torch.from_numpy(known.labels[images])
        return cross_entropy(logits, people.to(logits.device))

    network = _trained(view, nn.Sequential(main, head), known, loss, epochs, seed)
    taken_for = {
        int(image): int(person)
        for logits, images in _told(view, network, unknown, seed)
        for image, person in zip(images, logits.argmax(1).cpu(), strict=True)
    }
    right: dict[int, list[bool]] = {}
    for image, person in taken_for.items():
        right.setdefault(truth := int(unknown.labels[image]), []).append(person == truth)
    rates = {str(person): float(np.mean(own)) for person, own in sorted(right.items())}
    return Guess(rates, 1 / known.num_classes, taken_for)


def _trained(
    view: View, network: nn.Module, images: ImageSet, loss: Loss, epochs: int, seed: int
) -> nn.Module:
    network = view.compute.move_model(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for epoch in range(epochs):
        for seen in view.observations(images, seed, "train", epoch):
            for part in in_parts(np.arange(len(seen.rows)), BATCH):
                optimizer.zero_grad()
                loss(network(seen.rows[part]), seen.images[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _told(
    view: View, network: nn.Module, images: ImageSet, seed: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    for seen in view.observations(images, seed, "test"):
        yield network(seen.rows), seen.images
