"""Attributes of an image: questions with the same number of answers, each with a logit.

Binary attributes have two logits each; the classes of a data set are one attribute with many.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

LOGITS = 2
"""Logits per attribute: no, then yes."""


def compute_balancing_weights(attributes: torch.Tensor, answers: int = LOGITS) -> torch.Tensor:
    """Return weights (A, K) that give all K answers to each attribute the same total weight.

    ``attributes`` are those of the training images, int64 of shape (N, A). An answer that never
    occurs gets the weight 0.
    """
    later = [(attributes == answer).double().mean(0) for answer in range(1, answers)]
    first = 1 - torch.stack(later).sum(0)
    shares = torch.stack([first, *later], dim=1)
    return torch.where(shares > 0, 1 / answers / shares, 0.0).float()


def attribute_loss(
    logits: torch.Tensor, attributes: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross entropy of logits (B, A·K) and attributes, int64 (B, A).

    ``weights``, (A, K), are those of the answers, from :func:`compute_balancing_weights`.
    """
    answers = logits.reshape(*attributes.shape, -1)
    each = cross_entropy(answers.flatten(0, 1), attributes.flatten(), reduction="none")
    if weights is None:
        return each.mean()
    chosen = weights.to(logits.device).expand(len(attributes), -1, -1)
    return (each * chosen.gather(2, attributes[..., None]).flatten()).mean()


def predict_answers(logits: torch.Tensor, answers: int = LOGITS) -> torch.Tensor:
    """Return the predicted answers, 0 to K - 1, of logits (B, A·K): int64 of shape (B, A)."""
    return logits.reshape(len(logits), -1, answers).argmax(2)


def count_confusions(
    predicted: torch.Tensor, attributes: torch.Tensor, answers: int = LOGITS
) -> torch.Tensor:
    """Count each pair of truth and prediction: int64 of shape (A, K, K), truth first."""
    pairs = attributes * answers + predicted
    counts = [torch.bincount(each, minlength=answers**2) for each in pairs.unbind(1)]
    return torch.stack(counts).reshape(-1, answers, answers)


def compute_accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the accuracy of each attribute, (A,), from :func:`count_confusions`."""
    right = counts.diagonal(dim1=1, dim2=2).sum(1)
    return right.double() / counts.sum((1, 2))


def compute_balanced_accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the balanced accuracy of each attribute, (A,); NaN if an answer has no example."""
    right = counts.diagonal(dim1=1, dim2=2).double()
    return (right / counts.sum(2)).mean(1)
