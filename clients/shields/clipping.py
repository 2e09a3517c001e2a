"""Shields that protect a whole example: clip it to a norm, and add noise for that norm.

Only these guarantee something for a record of activations, so they work on integers.
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
from pudica.models.errors import RequestError


class ClipLaplaceConfig(ShieldConfig):
    """Settings of :class:`ClipLaplace`: ε of a record (None: no noise) and the L1 norm C."""

    name: Literal["clip-laplace"] = "clip-laplace"
    epsilon: float | None = Field(gt=0)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class ClipGaussianConfig(ShieldConfig):
    """Settings of :class:`ClipGaussian`: (ε, δ) of a record (None: no noise) and the L2 norm C."""

    name: Literal["clip-gaussian"] = "clip-gaussian"
    epsilon: float | None = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class Clipped(IntegerMechanism):
    """Clips each example to a norm C, so any two differ by at most 2C.

    Raises
    ------
    RequestError
        If there is too little or too much noise for a grid; on binding, if an example has too many
        features.
    """

    order: ClassVar[Literal[1, 2]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        try:
            # It is the same for all shapes.
            self._grid = None if self.is_noiseless else self._fitting_grid(())
        except ValueError as error:
            raise RequestError(f"{type(self).__name__}: {error}") from error

    def _prepare(self, shape: Shape, batch_size: int) -> None:
        if (features := math.prod(shape)) > MAX_FEATURES:
            raise ValueError(f"{features} features of an example; allowed: {MAX_FEATURES}")
        super()._prepare(shape, batch_size)

    @abstractmethod
    def unit_scale(self, epsilon: float) -> float:
        """Return the noise's scale, σ or b, for a sensitivity of 1."""

    def make_grid(self, shape: Shape) -> IntegerGrid:  # noqa: ARG002
        """Return a grid with room for examples of norm C and their noise."""
        return self._grid_for(self.config.epsilon)

    def _grid_for(self, epsilon: float) -> IntegerGrid:
        return IntegerGrid.of(self.kind, float(self.config.clip), self.unit_scale(epsilon))

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the examples, scaled down to norm C where their norm is larger."""
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
        """Return the clipped examples in whole steps; rounding keeps their norms within C."""
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
        """2C in the clipped norm, rounding included."""
        return 2 * float(self.config.clip)

    def describe_bound(self) -> str:
        """Return the clipping in words."""
        return f"L{self.order} norms clipped to {self.config.clip:g}"

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return examples with all their weight on one coordinate, with opposite signs."""
        above = torch.zeros(self.batch_size, *self.shape)
        above.view(self.batch_size, -1)[0, 0] = 2 * self.config.clip
        return above, -above


class ClipLaplace(Clipped):
    """Clips the L1 norm to C, then adds discrete Laplace noise, b = 2C/ε, to every coordinate."""

    schema = ClipLaplaceConfig
    kind: ClassVar[NoiseKind] = "laplace"
    order: ClassVar[Literal[1, 2]] = 1

    def unit_scale(self, epsilon: float) -> float:
        """Return 1/ε, rounded up so that the noise is never less than ε requires."""
        return math.nextafter(1 / epsilon, math.inf)


class ClipGaussian(Clipped):
    """Clips the L2 norm to C, then adds discrete Gaussian noise, calibrated analytically."""

    schema = ClipGaussianConfig
    kind: ClassVar[NoiseKind] = "gaussian"
    order: ClassVar[Literal[1, 2]] = 2

    def unit_scale(self, epsilon: float) -> float:
        """Return the smallest σ for (ε, δ), with :func:`.grid.slack` subtracted."""
        return discrete_sigma(epsilon, self.config.delta)
