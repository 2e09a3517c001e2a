"""Attribute and identity inference: networks trained on what the cloud sees (§4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.analysis.attacks.view import View, mean, split_evenly
from pudica.clients.data import ImageSet
from pudica.clients.shields.front import activation_shape
from pudica.models.attributes import attribute_loss, compute_balancing_weights
from pudica.models.randomness import derive, temporary_seed

LEARNING_RATE = 1e-3
BATCH = 64


@dataclass(frozen=True)
class InferenceResult:
    """Accuracy of an inference attack.

    Attributes
    ----------
    rates : dict of str to float
        Accuracy per attribute, balanced over yes and no, or per person; 0 to 1.
    chance : float
        Accuracy of blind guessing.
    taken_for : dict of int to int
        Of identity inference: the predicted person for each image that crossed.
    """

    rates: Mapping[str, float]
    chance: float
    taken_for: Mapping[int, int] = field(default_factory=dict)

    @property
    def success(self) -> float:
        """Mean of :attr:`rates`."""
        return mean(self.rates)


Loss = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def infer_attributes(view: View, epochs: int, seed: int) -> InferenceResult:
    """Train a copy of the cloud's stages to predict the attributes of the image in each row.

    Parameters
    ----------
    epochs : int
        Passes over the training part, each with new keys.
    """
    attributes = torch.from_numpy(view.known.attributes)
    # Accuracy is balanced: a rare answer counts as much as a common one.
    weights = compute_balancing_weights(attributes)

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        return attribute_loss(logits, attributes[images].to(logits.device), weights)

    classifier = nn.Sequential(copy.deepcopy(view.model.main), copy.deepcopy(view.model.post))
    network = _train_network(view, classifier, view.known, loss, epochs, seed)
    rates = view.score_attributes(_predict(view, network, view.data.test, seed))
    return InferenceResult(rates, 0.5)


def infer_identity(
    view: View, known: ImageSet, unknown: ImageSet, epochs: int, seed: int
) -> InferenceResult:
    """Train a copy of the cloud's stages to predict the person in each row.

    Parameters
    ----------
    known, unknown : ImageSet
        Images of the same people, labelled by person, to learn from and to attack. Normalised
        like the model's.
    """
    main = view.copy_trunk()
    features = activation_shape(main, view.model.shield.shape)
    with temporary_seed(derive(seed, "head")):
        head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(features), known.num_classes))

    def loss(logits: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        people = torch.from_numpy(known.labels[images])
        return cross_entropy(logits, people.to(logits.device))

    network = _train_network(view, nn.Sequential(main, head), known, loss, epochs, seed)
    taken_for = {
        int(image): int(person)
        for logits, images in _predict(view, network, unknown, seed)
        for image, person in zip(images, logits.argmax(1).cpu(), strict=True)
    }
    hits: dict[int, list[bool]] = {}
    for image, person in taken_for.items():
        hits.setdefault(truth := int(unknown.labels[image]), []).append(person == truth)
    rates = {str(person): float(np.mean(own)) for person, own in sorted(hits.items())}
    return InferenceResult(rates, 1 / known.num_classes, taken_for)


def _train_network(
    view: View, network: nn.Module, images: ImageSet, loss: Loss, epochs: int, seed: int
) -> nn.Module:
    network = view.compute.move_model(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for epoch in range(epochs):
        for seen in view.observations(images, seed, "train", epoch):
            for part in split_evenly(np.arange(len(seen.rows)), BATCH):
                optimizer.zero_grad()
                loss(network(seen.rows[part]), seen.images[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def _predict(
    view: View, network: nn.Module, images: ImageSet, seed: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    for seen in view.observations(images, seed, "test"):
        yield network(seen.rows), seen.images
