"""Noisy counts of correct predictions, which a device with a guarantee reports on its images."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from pudica.clients.shields.base import Shape, ShieldConfig
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import IntegerGrid
from pudica.clients.shields.integers import ON_GRID, IntegerMechanism


class CountsConfig(ShieldConfig):
    """Settings of :class:`Counts`: ε of a record for all counts of one reply (None: no noise)."""

    name: Literal["counts"] = "counts"
    epsilon: float | None = Field(gt=0)


class Counts(IntegerMechanism):
    """Adds discrete Laplace noise to numbers of images with some property.

    One "example" is one reply: all its counts. A replaced image moves each count by 1.
    """

    schema = CountsConfig
    kind: ClassVar[NoiseKind] = "laplace"

    def make_grid(self, shape: Shape) -> IntegerGrid:
        """Return the grid of whole numbers."""
        scale = float(math.prod(shape)) / float(self.config.epsilon)
        return IntegerGrid(1.0, 0, math.nextafter(scale, math.inf), "int32")

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the counts unchanged."""
        return tensor

    def round_to_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the counts, int64 of shape (B, F)."""
        return tensor.flatten(1).long()

    def scale_for(self, epsilon: float) -> float:
        """Return F/ε for F counts."""
        return self.sensitivity / epsilon

    @property
    def sensitivity(self) -> float:
        """The number of counts, since a replaced image moves each by 1."""
        return float(math.prod(self.shape))

    def describe_bound(self) -> str:
        """Return what a replaced image can change, in words."""
        return "a replaced image moves each count by 1"

    def assumptions(self) -> tuple[str, ...]:
        """Return the assumptions of the guarantee; neither labels nor fronts matter here."""
        return (self.describe_bound(), ON_GRID)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return counts of two sets of images, one with one more correct prediction."""
        some = torch.full((self.batch_size, *self.shape), 10.0)
        more = some.clone()
        more[0] += 1
        return some, more
