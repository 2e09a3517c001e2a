"""Label inference: a network that reads the class of an image off its releases."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pudica.analysis.attacks.base import CLEAR, Attack, Effort, Metrics, Outcome, balance_successes
from pudica.analysis.attacks.learning import choose_own, explain_few, read, train_reader
from pudica.analysis.views.releases import ReleasesView, Target

STEPS = 100
"""For each epoch of effort: a class is learnt sooner than an image."""


class LabelInference(Attack):
    """Reads classes off releases alone, also where labels cross beside them.

    Classes count the same, however many images they have: ``success`` is the balanced accuracy.
    """

    kind = "labels"
    goal = "attribute"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        if len(np.unique(target.images.labels)) < 2:
            return "all images are of one class"
        return explain_few(target.view)

    def run(self, target: Target, effort: Effort) -> Outcome:
        """Read the last release of each image, all of them, and all without noise."""
        view, labels = target.view, target.images.labels
        metrics: Metrics = {
            "chance": 1 / len(np.unique(labels)),
            "releases": view.releases,
        }
        views = {"_once": view.last(1), "": view, CLEAR: target.in_the_clear(effort.seed).view}
        for suffix, sees in views.items():
            if suffix != "_once" or view.releases > 1:
                guesses = infer_labels(sees, STEPS * effort.epochs, effort.seed)
                rates = balance_successes(guesses, labels)
                metrics |= {f"{name}{suffix}": value for name, value in rates.items()}
        return Outcome(metrics, {})


def infer_labels(view: ReleasesView, steps: int, seed: int) -> np.ndarray:
    """Train a classifier for a view, and return its guess of each attacked image's class, (n,)."""
    own = choose_own(view)
    true = torch.from_numpy(view.own.labels[own])
    weights = _balance(view.own.labels[own], view.own.num_classes)

    def loss(outputs: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        wanted = true[torch.from_numpy(chosen)].to(outputs.device)
        return cross_entropy(outputs, wanted, weights.to(outputs.device))

    reader = train_reader(view, own, view.own.num_classes, loss, steps, seed)
    return read(view, reader).argmax(1).numpy()


def _balance(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Return the weight of each class, the inverse of its share."""
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()
