"""The base of mechanisms that release integers, the only ones with a guarantee."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from pudica.clients.shields.base import ASSUMPTIONS, NO_NOISE, Guarantee, Mechanism, Shape
from pudica.clients.shields.discrete import LARGEST_SCALE, get_exact_sampler
from pudica.clients.shields.grid import IntegerGrid
from pudica.models.randomness import Randomness

ON_GRID = "released as whole numbers on a public grid, with noise drawn exactly"


class IntegerMechanism(Mechanism):
    """A mechanism that rounds to a public grid and adds noise in whole steps.

    Raises
    ------
    ValueError
        If ε is so small that no grid has room for its noise.
    """

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

    @abstractmethod
    def describe_bound(self) -> str:
        """Return in words what bounds an example."""

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
        """Return whole steps as float32; see :meth:`Shield.protect`.

        Gradients are those of :meth:`bounded`.
        """
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

    def assumptions(self) -> tuple[str, ...]:
        """Return what bounds an example, and the assumptions of every record's guarantee."""
        return (self.describe_bound(), ON_GRID, "labels are public", *ASSUMPTIONS)
