"""Shields without a guarantee: none, noise, low resolution (paper 003's rivals), few levels."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pudica.clients.shields.base import REMOVES, Shape, Shield, ShieldConfig, draw_noise
from pudica.models.randomness import Randomness

MOST = 1e6
"""The largest level, far within the range of float32."""


class NoShieldConfig(ShieldConfig):
    """Leave everything as it is; there is nothing to set."""

    name: Literal["none"] = "none"


class NoShield(Shield):
    """Passes everything through unchanged: the baseline for all others."""

    schema = NoShieldConfig
    reasons = ("no noise",)

    def _protect(
        self,
        tensor: torch.Tensor,
        randomness: Randomness,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        return self.validate_input(tensor), None


class AdditiveNoiseConfig(ShieldConfig):
    """Add Gaussian noise to values without a bound, a baseline of paper 003.

    Attributes
    ----------
    variance : float, in squared units of the input
        The variance of the noise.
    """

    name: Literal["noise"] = "noise"
    variance: float = Field(default=4.0, ge=0)


class AdditiveNoise(Shield):
    """Adds N(0, variance) to each value; its input has no bound, so there is no guarantee."""

    schema = AdditiveNoiseConfig
    config: AdditiveNoiseConfig
    reasons = ("an obfuscation: what noise is added to has no bound",)

    def _protect(self, tensor: torch.Tensor, randomness: Randomness) -> tuple[torch.Tensor, None]:
        tensor = self.validate_input(tensor)
        noise = draw_noise("gaussian", tuple(tensor.shape), self.config.variance**0.5, randomness)
        return tensor + noise.to(tensor.device), None


class LowResolutionConfig(ShieldConfig):
    """Reduce images to few pixels, a baseline of paper 003.

    Attributes
    ----------
    side : int, in pixels
        The side of the reduced image.
    """

    name: Literal["low-resolution"] = "low-resolution"
    side: int = Field(default=16, ge=1)


class LowResolution(Shield):
    """Averages an image over blocks, then interpolates it to the old size (bilinear)."""

    schema = LowResolutionConfig
    config: LowResolutionConfig
    reasons = (REMOVES,)

    def _prepare(self, shape: Shape, batch_size: int) -> None:  # noqa: ARG002
        side = self.config.side
        if len(shape) != 3 or side > min(shape[1:]):
            raise ValueError(
                f"{side}x{side} is not a lower resolution than {'x'.join(map(str, shape))}"
            )

    def _protect(
        self,
        tensor: torch.Tensor,
        randomness: Randomness,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        left = adaptive_avg_pool2d(self.validate_input(tensor), self.config.side)
        return interpolate(left, size=self.shape[1:], mode="bilinear", align_corners=False), None


class QuantiseConfig(ShieldConfig):
    """Round values to few levels.

    Attributes
    ----------
    bits : int, in bits
        A value becomes one of ``2**bits`` levels, evenly spaced from ``low`` to ``high``.
    low : float, in units of the input
        The lowest level, which lower values become.
    high : float, in units of the input
        The highest level, which higher values become.
    """

    name: Literal["quantise"] = "quantise"
    bits: int = Field(default=2, ge=1, le=8)
    low: float = Field(default=0.0, ge=-MOST, le=MOST)
    high: float = Field(default=1.0, ge=-MOST, le=MOST)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"high: must be above low, {self.low:g}, is {self.high:g}")
        return self


class Quantise(Shield):
    """Clamps each value to [low, high], then rounds it to the nearest of ``2**bits`` levels.

    The gradient passes as if nothing were rounded (the straight-through estimator of Bengio et al.
    2013); it is 0 where a value was clamped. The levels are released as floats, of the bytes that
    ``wire`` says: packed, a value would need ``bits`` bits instead of 32.
    """

    schema = QuantiseConfig
    config: QuantiseConfig
    reasons = (REMOVES,)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batches at the ends of the range; see :meth:`Shield.neighbours`."""
        black, white = super().neighbours()
        low, high = self.config.low, self.config.high
        return low + (high - low) * black, low + (high - low) * white

    def _protect(
        self,
        tensor: torch.Tensor,
        randomness: Randomness,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        low, high = self.config.low, self.config.high
        clamped = self.validate_input(tensor).clamp(low, high)
        step = (high - low) / (2**self.config.bits - 1)
        levels = low + step * ((clamped.detach() - low) / step).round()
        # The difference is 0, exactly, and only its gradient counts.
        return levels + (clamped - clamped.detach()), None
