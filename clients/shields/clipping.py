"""Shields that protect a whole example: clipped to a norm, with noise for that norm.

They alone promise something for a record, so they alone work on integers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pudica.clients.shields.analytic import discrete_sigma
from pudica.clients.shields.base import JUST_BELOW, Shape, ShieldConfig
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import MAX_FEATURES, IntegerGrid, round_rows
from pudica.clients.shields.integers import IntegerMechanism


class ClipLaplaceConfig(ShieldConfig):
    """Settings of :class:`ClipLaplace`: ε of a record (None: no noise), and the L1 norm C."""

    name: Literal["clip-laplace"] = "clip-laplace"
    epsilon: float | None = Field(gt=0)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class ClipGaussianConfig(ShieldConfig):
    """Settings of :class:`ClipGaussian`: (ε, δ) of a record (None: no noise), and the L2 norm C."""

    name: Literal["clip-gaussian"] = "clip-gaussian"
    epsilon: float | None = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class Clipped(IntegerMechanism):
    """Each example clipped to a norm C: any two differ by 2C at most.

    Raises
    ------
    ValueError
        For activations of too many features; or as :class:`IntegerMechanism`.
    """

    order: ClassVar[Literal[1, 2]]

    def __init__(self, config: Any, shape: Shape, batch: int) -> None:
        if (features := math.prod(shape)) > MAX_FEATURES:
            raise ValueError(f"{features} features of an example; allowed: {MAX_FEATURES}")
        super().__init__(config, shape, batch)

    @abstractmethod
    def unit_scale(self, epsilon: float) -> float:
        """Return the noise's σ or b for a sensitivity of 1."""

    def make_grid(self) -> IntegerGrid:
        """Return a grid with room for examples of norm C and their noise."""
        return self._grid_for(self.config.epsilon)

    def _grid_for(self, epsilon: float) -> IntegerGrid:
        return IntegerGrid.of(self.kind, float(self.config.clip), self.unit_scale(epsilon))

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the examples, those with a larger norm scaled down to C."""
        exact = tensor.flatten(1).double()
        scaled: torch.Tensor = exact * self._factor(exact)
        return scaled.to(tensor.dtype).view_as(tensor)

    def _factor(self, exact: torch.Tensor) -> torch.Tensor:
        norms = exact.norm(p=self.order, dim=1, keepdim=True)
        least = torch.finfo(torch.float64).tiny
        factor: torch.Tensor = (JUST_BELOW * self.config.clip / norms.clamp(min=least)).clamp(max=1)
        return factor

    @torch.no_grad()
    def round_to_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the examples in whole steps; rounding makes none of them longer than C."""
        assert self.grid
        exact = tensor.flatten(1).double()
        steps = exact * self._factor(exact) / self.grid.step
        return round_rows(steps, self.order, self.grid.levels)

    def scale_for(self, epsilon: float) -> float:
        """Return the scale of the noise on the grid."""
        grid = self._grid_for(epsilon)
        return grid.scale * grid.step

    @property
    def sensitivity(self) -> float:
        """2C, in the norm that is clipped, with the rounding."""
        return 2 * float(self.config.clip)

    def describe_bound(self) -> str:
        """Return the clipping."""
        return f"L{self.order} norms clipped to {self.config.clip:g}"

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return examples with all their weight on one coordinate, of either sign."""
        above = torch.zeros(self.batch, *self.shape)
        above.view(self.batch, -1)[0, 0] = 2 * self.config.clip
        return above, -above


class ClipLaplace(Clipped):
    """L1 norm at most C, then discrete Laplace noise, b = 2C/ε, on every coordinate."""

    kind: ClassVar[NoiseKind] = "laplace"
    order: ClassVar[Literal[1, 2]] = 1

    def unit_scale(self, epsilon: float) -> float:
        """Return 1/ε, rounded upwards: the noise is never less than ε asks for."""
        return math.nextafter(1 / epsilon, math.inf)


class ClipGaussian(Clipped):
    """L2 norm at most C, then discrete Gaussian noise, calibrated analytically."""

    kind: ClassVar[NoiseKind] = "gaussian"
    order: ClassVar[Literal[1, 2]] = 2

    def unit_scale(self, epsilon: float) -> float:
        """Return the least σ for (ε, δ), with :func:`.grid.slack` taken off."""
        return discrete_sigma(epsilon, self.config.delta)
