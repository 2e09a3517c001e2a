"""Shields without a guarantee: none at all, additive noise, low resolution (paper 003's rivals)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pudica.clients.shields.base import REMOVES, Shape, Shield, ShieldConfig, draw_noise
from pudica.models.randomness import Randomness


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
