"""Shields that protect a whole example: clipped to a norm, with noise for that norm."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from clients.shields.analytic import analytic_sigma
from clients.shields.base import (
    ASSUMED,
    JUST_BELOW,
    NO_NOISE,
    Guarantee,
    Mechanism,
    Noise,
    ShieldConfig,
)


class ClipLaplaceConfig(ShieldConfig):
    """Settings of :class:`ClipLaplace`: ε of a record (None: no noise), and the L1 norm C."""

    name: Literal["clip-laplace"] = "clip-laplace"
    epsilon: float | None = Field(gt=0)
    clip: float = Field(default=1.0, gt=0)


class ClipGaussianConfig(ShieldConfig):
    """Settings of :class:`ClipGaussian`: (ε, δ) of a record (None: no noise), and the L2 norm C."""

    name: Literal["clip-gaussian"] = "clip-gaussian"
    epsilon: float | None = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)


class Clipped(Mechanism):
    """Each example clipped to a norm C: any two differ by 2C at most."""

    order: ClassVar[Literal[1, 2]]

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the examples, those with a larger norm scaled down to C."""
        exact = tensor.flatten(1).double()
        norms = exact.norm(p=self.order, dim=1, keepdim=True)
        least = torch.finfo(torch.float64).tiny
        factor = (JUST_BELOW * self.config.clip / norms.clamp(min=least)).clamp(max=1)
        scaled: torch.Tensor = exact * factor
        return scaled.to(tensor.dtype).view_as(tensor)

    @property
    def sensitivity(self) -> float:
        """2C, in the norm that is clipped."""
        return 2 * float(self.config.clip)

    def held(self) -> Guarantee:
        """Return ε, and δ where there is one, of a record: just those of the settings."""
        if self.noiseless:
            return NO_NOISE
        delta = getattr(self.config, "delta", 0.0)
        return Guarantee("record", self.config.epsilon, delta, self.grounds())

    def grounds(self) -> tuple[str, ...]:
        """Return the clipping, and what every record's guarantee rests on."""
        clip = f"L{self.order} norms clipped to {self.config.clip:g}"
        return (clip, "labels are public", *ASSUMED)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return examples with all their weight on one coordinate, of either sign."""
        above = torch.zeros(self.batch, *self.shape)
        above.view(self.batch, -1)[0, 0] = 2 * self.config.clip
        return above, -above


class ClipLaplace(Clipped):
    """L1 norm at most C, then Lap(2C/ε) on every coordinate."""

    kind: ClassVar[Noise] = "laplace"
    order: ClassVar[Literal[1, 2]] = 1

    def scale_for(self, epsilon: float) -> float:
        """Return 2C/ε."""
        return self.sensitivity / epsilon


class ClipGaussian(Clipped):
    """L2 norm at most C, then Gaussian noise, calibrated analytically."""

    kind: ClassVar[Noise] = "gaussian"
    order: ClassVar[Literal[1, 2]] = 2

    def scale_for(self, epsilon: float) -> float:
        """Return 2C·σ with the least σ for (ε, δ)."""
        return self.sensitivity * analytic_sigma(epsilon, self.config.delta)
