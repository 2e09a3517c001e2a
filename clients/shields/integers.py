"""Mechanisms that release integers, the only ones with a guarantee for a record.

The discrete noise is exact, and a norm that each example is clipped to bounds what it adds to.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pudica.clients.shields.analytic import discrete_sigma
from pudica.clients.shields.base import (
    ASSUMPTIONS,
    JUST_BELOW,
    NO_NOISE,
    Guarantee,
    Mechanism,
    Shape,
    ShieldConfig,
)
from pudica.clients.shields.discrete import LARGEST_SCALE, NoiseKind, get_exact_sampler
from pudica.clients.shields.grid import MAX_FEATURES, IntegerGrid, round_rows
from pudica.models.randomness import Randomness

ON_GRID = "released as whole numbers on a public grid, with noise drawn exactly"


class IntegerMechanism(Mechanism):
    """A mechanism that rounds to a public grid and adds noise in whole steps."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._grid: IntegerGrid | None = None

    def _prepare(self, shape: Shape, batch_size: int) -> None:
        super()._prepare(shape, batch_size)
        self._grid = None if self.is_noiseless else self._fitting_grid(shape)

    def _fitting_grid(self, shape: Shape) -> IntegerGrid:
        grid = self.make_grid(shape)
        if grid.scale > LARGEST_SCALE[self.kind]:
            raise ValueError(f"epsilon: {self.config.epsilon:g} is too small for noise on a grid")
        return grid

    @abstractmethod
    def make_grid(self, shape: Shape) -> IntegerGrid:
        """Return the grid for examples of a shape, and the noise on it, from the settings."""

    @abstractmethod
    def round_to_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the bounded function in whole steps, int64 of shape (B, F)."""

    @property
    def grid(self) -> IntegerGrid | None:
        """The grid of its releases; None without noise."""
        if self._grid is None and not self.is_noiseless:
            self._grid = self._fitting_grid(self.shape)
        return self._grid

    def validate_input(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as finite float32.

        NaN and infinity are replaced, not refused: a refusal would reveal that an example has them.
        """
        return torch.nan_to_num(self.validate_shape(tensor))

    def _protect(self, tensor: torch.Tensor, randomness: Randomness) -> tuple[torch.Tensor, None]:
        """Return whole steps as float32; gradients are those of :meth:`bounded`."""
        tensor = self.validate_input(tensor)
        if self._grid is None:
            return self.bounded(tensor), None
        centres = self.round_to_grid(tensor).cpu().numpy()
        noise = get_exact_sampler(self.kind, self._grid.scale).draw(centres.size, randomness)
        integers = self._grid.clamp(centres + noise.reshape(centres.shape))
        released = self._grid.to_values(integers).view_as(tensor).to(tensor.device)
        if tensor.requires_grad:
            bounded = self.bounded(tensor)
            released = released + (bounded - bounded.detach())  # which is exactly 0
        return released, None

    def noise_centres(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what the noise is added to; see :meth:`Mechanism.noise_centres`."""
        if self._grid is None:
            return super().noise_centres(tensor)
        return self._grid.to_values(self.round_to_grid(tensor).cpu().numpy()).view_as(tensor)

    def guarantee(self) -> Guarantee:
        """Return the guarantee of a record: the ε and δ of the settings."""
        return NO_NOISE if self.is_noiseless else self.guarantee_in_real_numbers()

    def guarantee_in_real_numbers(self) -> Guarantee:
        """Return the same as :meth:`guarantee`, since a grid has no rounding errors."""
        delta = getattr(self.config, "delta", 0.0)
        return Guarantee("record", self.config.epsilon, delta, self.assumptions())


class Clipped(IntegerMechanism):
    """Clips each example to a norm C, so any two differ by at most 2C.

    RequestError if there is too little or too much noise for a grid; on binding, if an example has
    too many features.
    """

    order: ClassVar[Literal[1, 2]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        try:
            # It is the same for all shapes.
            self._grid = None if self.is_noiseless else self._fitting_grid(())
        except ValueError as error:
            raise self._error(error) from error

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
        return self._clip(tensor).to(tensor.dtype).view_as(tensor)

    def _clip(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the clipped examples, float64 of shape (B, F)."""
        exact = tensor.flatten(1).double()
        norms = exact.norm(p=self.order, dim=1, keepdim=True)
        least = torch.finfo(torch.float64).tiny
        factor = (JUST_BELOW * self.config.clip / norms.clamp(min=least)).clamp(max=1)
        clipped: torch.Tensor = exact * factor
        return clipped

    @torch.no_grad()
    def round_to_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the clipped examples in whole steps; rounding keeps their norms within C."""
        assert self.grid
        return round_rows(self._clip(tensor) / self.grid.step, self.order, self.grid.levels)

    def scale_for(self, epsilon: float) -> float:
        """Return the scale of the noise on the grid."""
        grid = self._grid_for(epsilon)
        return grid.scale * grid.step

    @property
    def sensitivity(self) -> float:
        """2C in the clipped norm, rounding included."""
        return 2 * float(self.config.clip)

    def assumptions(self) -> tuple[str, ...]:
        """Return what bounds an example, and the assumptions of every record's guarantee."""
        bound = f"L{self.order} norms clipped to {self.config.clip:g}"
        return (bound, ON_GRID, "labels are public", *ASSUMPTIONS)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return examples with all their weight on one coordinate, with opposite signs."""
        above = torch.zeros(self.batch_size, *self.shape)
        above.view(self.batch_size, -1)[0, 0] = 2 * self.config.clip
        return above, -above


class ClipLaplaceConfig(ShieldConfig):
    """Clip each example's L1 norm, add discrete Laplace noise.

    Attributes
    ----------
    epsilon : float or None, in ε of one record
        How much noise there is: the smaller, the more. None: no noise.
    clip : float, in units of the activations
        The L1 norm C to which an example is scaled down if it is larger.
    """

    name: Literal["clip-laplace"] = "clip-laplace"
    epsilon: float | None = Field(gt=0)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class ClipLaplace(Clipped):
    """Clips the L1 norm to C, then adds discrete Laplace noise, b = 2C/ε, to every coordinate."""

    schema = ClipLaplaceConfig
    kind: ClassVar[NoiseKind] = "laplace"
    order: ClassVar[Literal[1, 2]] = 1

    def unit_scale(self, epsilon: float) -> float:
        """Return 1/ε, rounded up so that the noise is never less than ε requires."""
        return math.nextafter(1 / epsilon, math.inf)


class ClipGaussianConfig(ShieldConfig):
    """Clip each example's L2 norm, add discrete Gaussian noise.

    Attributes
    ----------
    epsilon : float or None, in ε of one record
        How much noise there is: the smaller, the more. None: no noise.
    delta : float
        The δ that goes with ε.
    clip : float, in units of the activations
        The L2 norm C to which an example is scaled down if it is larger.
    """

    name: Literal["clip-gaussian"] = "clip-gaussian"
    epsilon: float | None = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)


class ClipGaussian(Clipped):
    """Clips the L2 norm to C, then adds discrete Gaussian noise, calibrated analytically."""

    schema = ClipGaussianConfig
    kind: ClassVar[NoiseKind] = "gaussian"
    order: ClassVar[Literal[1, 2]] = 2

    def unit_scale(self, epsilon: float) -> float:
        """Return the smallest σ for (ε, δ), with :func:`.grid.slack` subtracted."""
        return discrete_sigma(epsilon, self.config.delta)


class CountsConfig(ShieldConfig):
    """Add discrete Laplace noise to counts of images, such as those classified correctly.

    Attributes
    ----------
    epsilon : float or None, in ε of one record
        Of all counts of one reply together: the smaller, the more noise. None: no noise.
    """

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

    def assumptions(self) -> tuple[str, ...]:
        """Return the assumptions of the guarantee; neither labels nor fronts matter here."""
        return ("a replaced image moves each count by 1", ON_GRID)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return counts of two sets of images, one with one more correct prediction."""
        some = torch.full((self.batch_size, *self.shape), 10.0)
        more = some.clone()
        more[0] += 1
        return some, more
