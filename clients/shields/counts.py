"""Counts of right answers, with noise: what a device with a guarantee says of its own images."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from pudica.clients.shields.base import ShieldConfig
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import IntegerGrid
from pudica.clients.shields.integers import ON_GRID, IntegerMechanism


class CountsConfig(ShieldConfig):
    """Settings of :class:`Counts`: ε of a record, for all counts of one answer (None: no noise)."""

    name: Literal["counts"] = "counts"
    epsilon: float | None = Field(gt=0)


class Counts(IntegerMechanism):
    """Whole numbers of images with some property, then discrete Laplace noise.

    One "example" is one answer: all its counts, each of which a replaced image moves by 1.
    """

    kind: ClassVar[NoiseKind] = "laplace"

    def make_grid(self) -> IntegerGrid:
        """Return the grid of whole numbers."""
        scale = self.sensitivity / float(self.config.epsilon)
        return IntegerGrid(1.0, 0, math.nextafter(scale, math.inf), "int32")

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the counts."""
        return tensor

    def round_to_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the counts, int64 of shape (B, F)."""
        return tensor.flatten(1).long()

    def scale_for(self, epsilon: float) -> float:
        """Return F/ε of F counts."""
        return self.sensitivity / epsilon

    @property
    def sensitivity(self) -> float:
        """The number of counts: a replaced image moves each by 1."""
        return float(math.prod(self.shape))

    def describe_bound(self) -> str:
        """Return what is counted on."""
        return "a replaced image moves each count by 1"

    def assumptions(self) -> tuple[str, ...]:
        """Return what the guarantee rests on: neither labels nor fronts matter here."""
        return (self.describe_bound(), ON_GRID)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the answers about two sets of images, one of them with one right answer more."""
        some = torch.full((self.batch, *self.shape), 10.0)
        more = some.clone()
        more[0] += 1
        return some, more
