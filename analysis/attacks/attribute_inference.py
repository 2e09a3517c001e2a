"""Attribute and identity inference: networks trained on what the cloud sees (§4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.analysis.attacks.base import CLEAR, SHOWN, Attack, Effort, Outcome
from pudica.analysis.views.facemix import FacemixView, explain_few, mean, split_evenly
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


def infer_attributes(view: FacemixView, epochs: int, seed: int) -> InferenceResult:
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
    view: FacemixView, known: ImageSet, unknown: ImageSet, epochs: int, seed: int
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
    view: FacemixView, network: nn.Module, images: ImageSet, loss: Loss, epochs: int, seed: int
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
    view: FacemixView, network: nn.Module, images: ImageSet, seed: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    for seen in view.observations(images, seed, "test"):
        yield network(seen.rows), seen.images


class AttributeInference(Attack):
    """Reads the attributes that the model answers off what the cloud sees."""

    kind = "attributes"
    goal = "attribute"
    target = FacemixView

    def _explain_unfit(self, view: FacemixView) -> str:
        return explain_few(view, len(view.data.test))

    def run(self, view: FacemixView, effort: Effort) -> Outcome:
        """Train on what crosses, and on the same in the clear."""
        shielded, clear = (
            infer_attributes(sees, effort.epochs, effort.seed)
            for sees in (view, view.without_shield())
        )
        each = {
            name: {"success": rate, f"success{CLEAR}": clear.rates[name]}
            for name, rate in shielded.rates.items()
        }
        metrics = {"success": shielded.success, f"success{CLEAR}": clear.success}
        return Outcome({**metrics, "chance": shielded.chance}, {}, each)


class IdentityInference(Attack):
    """Recognises people, of whom the cloud has other images."""

    kind = "identity"
    goal = "identity"
    target = FacemixView

    def _explain_unfit(self, view: FacemixView) -> str:
        if view.people is None:
            return "people are not known"
        return explain_few(view, len(view.people.test), "images of known people")

    def run(self, view: FacemixView, effort: Effort) -> Outcome:
        """Train on what crosses of known people, and on the same in the clear."""
        people = view.people
        assert people is not None
        mean, std = view.data.train.mean, view.data.train.std
        known, unknown = (replace(part, mean=mean, std=std) for part in (people.train, people.test))
        epochs = 4 * effort.epochs  # these data are few, so epochs are short
        shielded, clear = (
            infer_identity(sees, known, unknown, epochs, effort.seed)
            for sees in (view, view.without_shield())
        )
        shown = [image for image in sorted(shielded.taken_for) if image in clear.taken_for][:SHOWN]
        pictures = {"to be recognised": unknown.pixels(np.array(shown)).numpy()}
        for label, guess in {"taken for": shielded, "the same in the clear": clear}.items():
            faces = [_find_first_image(known, guess.taken_for[image]) for image in shown]
            pictures[label] = torch.cat(faces).numpy()
        metrics = {"success": shielded.success, f"success{CLEAR}": clear.success}
        return Outcome({**metrics, "chance": shielded.chance, "epochs": epochs}, pictures)


def _find_first_image(images: ImageSet, person: int) -> torch.Tensor:
    """Return the first image of a person, (1, C, H, W), or a black one if there is none."""
    first = np.flatnonzero(images.labels == person)[:1]
    return images.pixels(first) if len(first) else torch.zeros_like(images.pixels(slice(0, 1)))
