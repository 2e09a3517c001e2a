"""Several yes-or-no questions about an image, each answered by two logits."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

LOGITS = 2
"""Of each attribute: of no, and of yes."""


def by_attribute(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, 2·A) as (B, A, 2)."""
    return logits.reshape(len(logits), -1, LOGITS)


def balancing(attributes: torch.Tensor) -> torch.Tensor:
    """Return weights (A, 2) under which no and yes of each attribute count the same.

    Parameters
    ----------
    attributes : int64 tensor of shape (N, A)
        Of training images. An answer that none has gets the weight 0.
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
        Of each answer, as of :func:`balancing`.
    """
    answers = by_attribute(logits)
    each = cross_entropy(answers.flatten(0, 1), attributes.flatten(), reduction="none")
    if weights is None:
        return each.mean()
    chosen = weights.to(logits.device).expand(len(attributes), -1, -1)
    return (each * chosen.gather(2, attributes[..., None]).flatten()).mean()


def answered(logits: torch.Tensor) -> torch.Tensor:
    """Return the answers, int64 of shape (B, A): 0 or 1."""
    return by_attribute(logits).argmax(2)


def confusion(answers: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """Return how often which answer was given, int64 of shape (A, 2, 2): truth, then answer."""
    counts = torch.zeros(attributes.shape[1], LOGITS, LOGITS, dtype=torch.int64)
    for truth in range(LOGITS):
        for answer in range(LOGITS):
            both = (attributes == truth) & (answers == answer)
            counts[:, truth, answer] = both.sum(0)
    return counts


def accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the share of right answers of each attribute, (A,), from :func:`confusion`."""
    right = counts.diagonal(dim1=1, dim2=2).sum(1)
    return right.double() / counts.sum((1, 2))


def balanced_accuracies(counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of both answers' shares of right ones, (A,); NaN if one has no example."""
    right = counts.diagonal(dim1=1, dim2=2).double()
    return (right / counts.sum(2)).mean(1)
