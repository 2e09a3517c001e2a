"""Networks that are trained on what the cloud sees: for attributes, and for people (§4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.attacks.view import View
from clients.data import ImageSet
from clients.shields.front import activation_shape
from models.attributes import attribute_loss, balancing
from models.randomness import derive, seeded

LEARNING_RATE = 1e-3
BATCH = 64


@dataclass(frozen=True)
class Guess:
    """How often an attacker is right.

    Attributes
    ----------
    success : float
        The mean over classes of the share of right guesses, 0 to 1; of attributes the mean over
        them.
    chance : float
        Of somebody who guesses blindly.
    """

    success: float
    chance: float


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
    weights = balancing(attributes)

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        return attribute_loss(logits, attributes[images].to(logits.device), weights)

    network = _trained(view, view.classifier(), view.known, loss, epochs, seed)
    return Guess(view.success(_told(view, network, view.data.test, seed)), 0.5)


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
    with seeded(derive(seed, "head")):
        head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(features), known.num_classes))

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        people = torch.from_numpy(known.labels[images])
        return cross_entropy(logits, people.to(logits.device))

    network = _trained(view, nn.Sequential(main, head), known, loss, epochs, seed)
    right, total = (np.zeros(known.num_classes) for _ in range(2))
    for logits, images in _told(view, network, unknown, seed):
        truth = unknown.labels[images]
        np.add.at(right, truth, logits.argmax(1).cpu().numpy() == truth)
        np.add.at(total, truth, 1)
    there = total > 0
    return Guess(float((right[there] / total[there]).mean()), 1 / known.num_classes)


def _trained(
    view: View, network: nn.Module, images: ImageSet, loss: Loss, epochs: int, seed: int
) -> nn.Module:
    network = view.compute.host(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for epoch in range(epochs):
        for seen in view.observations(images, seed, "train", epoch):
            for part in np.array_split(np.arange(len(seen.rows)), -(-len(seen.rows) // BATCH)):
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
