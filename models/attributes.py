"""Binary attributes of an image, each predicted by two logits."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

LOGITS = 2
"""Logits per attribute: no, then yes."""


def split_by_attribute(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, 2·A) as (B, A, 2)."""
    return logits.reshape(len(logits), -1, LOGITS)


def compute_balancing_weights(attributes: torch.Tensor) -> torch.Tensor:
    """Return weights (A, 2) that give both answers to each attribute the same total weight.

    Parameters
    ----------
    attributes : int64 tensor of shape (N, A)
        Attributes of the training images. An answer that never occurs gets the weight 0.
    """
    yes = attributes.double().mean(0)
    shares = torch.stack([1 - yes, yes], dim=1)
    return torch.where(shares > 0, 0.5 / shares, 0.0).float()


def attribute_loss(
    logits: torch.Tensor, attributes: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross entropy over images and attributes.

    Parameters
    ----------
    logits : Tensor of shape (B, 2·A)
    attributes : int64 tensor of shape (B, A)
    weights : Tensor of shape (A, 2) or None
        Weight of each answer, from :func:`compute_balancing_weights`.
    """
    answers = split_by_attribute(logits)
    each = cross_entropy(answers.flatten(0, 1), attributes.flatten(), reduction="none")
    if weights is None:
        return each.mean()
    chosen = weights.to(logits.device).expand(len(attributes), -1, -1)
    return (each * chosen.gather(2, attributes[..., None]).flatten()).mean()


def predict_answers(logits: torch.Tensor) -> torch.Tensor:
    """Return the predicted answers, 0 or 1: int64 of shape (B, A)."""
    return split_by_attribute(logits).argmax(2)


def count_confusions(answers: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """Count each pair of truth and answer: int64 of shape (A, 2, 2), truth first."""
    counts = torch.zeros(attributes.shape[1], LOGITS, LOGITS, dtype=torch.int64)
    for truth in range(LOGITS):
        for answer in range(LOGITS):
            both = (attributes == truth) & (answers == answer)
            counts[:, truth, answer] = both.sum(0)
    return counts


def compute_accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the accuracy of each attribute, (A,), from :func:`count_confusions`."""
    right = counts.diagonal(dim1=1, dim2=2).sum(1)
    return right.double() / counts.sum((1, 2))


def compute_balanced_accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the balanced accuracy of each attribute, (A,); NaN if an answer has no example."""
    right = counts.diagonal(dim1=1, dim2=2).double()
    return (right / counts.sum(2)).mean(1)
