"""NoPeek: a front that learns activations which depend little on their images."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import normalize

from pudica.clients.shields.base import Shield, ShieldConfig
from pudica.models.randomness import Randomness

TINY = 1e-12
"""Below this a squared correlation counts as 0, where its root has no gradient."""


class NoPeekConfig(ShieldConfig):
    """Train the front to decorrelate activations from images: NoPeek (Vepakomma et al. 2020).

    Attributes
    ----------
    weight : float
        The weight of the distance correlation in the front's loss, beside a weight of 1 for the
        cross entropy. 0: the front is trained as without it.
    """

    name: Literal["no-peek"] = "no-peek"
    weight: float = Field(default=0.1, ge=0)


class NoPeek(Shield):
    """Passes activations on unchanged, and adds their distance correlation to the front's loss.

    Of "NoPeek: Information leakage reduction to share activations in distributed deep learning"
    (Vepakomma et al. 2020), whose loss is α₁ dCor(X, Z) + α₂ CE(y, ŷ); ``weight`` is α₁, and α₂ is
    1. It works only where a front learns.
    """

    schema = NoPeekConfig
    config: NoPeekConfig
    reasons = ("an obfuscation: it lowers a correlation in training, and bounds nothing",)

    def _protect(
        self,
        tensor: torch.Tensor,
        randomness: Randomness,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        return self.validate_input(tensor), None

    def penalty(self, images: torch.Tensor, activations: torch.Tensor) -> torch.Tensor | None:
        """Return ``weight`` times the distance correlation of a batch; None of a single image."""
        if len(images) < 2 or not self.config.weight:
            return None
        return self.config.weight * distance_correlation(images, activations)


def distance_correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the sample distance correlation of two batches, Eq. (2.10) of Székely et al. 2007.

    It is 0 to 1: 1 if one batch is the other moved, turned and scaled; 0 if one does not vary.
    Between small batches of many features it is large even if they are independent.

    Parameters
    ----------
    x, y : Tensor of shape (B, …)
        The same examples; the shapes of one example may differ.

    Returns
    -------
    Tensor of shape ()
        Differentiable. Where distances or the correlation are 0, so is the gradient.

    Raises
    ------
    ValueError
        The batches have different numbers of examples.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} examples and {len(y)}: they must be the same")
    one, other = (_centred_distances(each.flatten(1)) for each in (x, y))
    # dCov² over the root of both dVar², which is what normalising both leaves.
    squared = (normalize(one, dim=0) * normalize(other, dim=0)).sum()
    root = squared.clamp_min(TINY).sqrt()
    return torch.where(squared > TINY, root, torch.zeros_like(root))


def _centred_distances(rows: torch.Tensor) -> torch.Tensor:
    """Return the distances of all pairs of rows (B, F), doubly centred, up to a factor: (B²,)."""
    rows = rows - rows.mean(0)
    precision = torch.finfo(rows.dtype)
    # Any factor will do. This one keeps squares from overflowing, or from vanishing unless the
    # rows are so nearly equal that the gradient, which grows as they do, would overflow.
    rows = rows / rows.detach().abs().max().clamp_min(precision.tiny**0.5)
    squares = rows.square().sum(1)
    sums = squares + squares[:, None]
    # By a product, as differences of all pairs would take B² · F values.
    squared = sums - 2 * rows @ rows.mT
    # What is closer than rounding errors counts as equal: a root has no gradient at 0.
    apart = squared > 8 * precision.eps * sums
    distances = torch.where(apart, squared, 1.0).sqrt() * apart
    means = distances.mean(0)
    return (distances - means - means[:, None] + means.mean()).flatten()
