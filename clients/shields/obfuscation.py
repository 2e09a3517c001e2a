"""Additive noise and low resolution: the obfuscations that paper 003 compares with."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pudica.clients.shields.base import Guarantee, Shape, Shield, ShieldConfig, draw_noise
from pudica.models.randomness import Randomness


class AdditiveNoiseConfig(ShieldConfig):
    """Settings of :class:`AdditiveNoise`.

    Attributes
    ----------
    variance : float
        In the units of the input, for example of normalised images.
    """

    name: Literal["noise"] = "noise"
    variance: float = Field(default=4.0, ge=0)


class AdditiveNoise(Shield):
    """Adds N(0, variance) to each value; its input has no bound, so there is no guarantee."""

    schema = AdditiveNoiseConfig
    config: AdditiveNoiseConfig

    def _protect(self, tensor: torch.Tensor, randomness: Randomness) -> tuple[torch.Tensor, None]:
        """Return the tensor with noise; see :meth:`Shield.protect`."""
        tensor = self.validate_input(tensor)
        noise = draw_noise("gaussian", tuple(tensor.shape), self.config.variance**0.5, randomness)
        return tensor + noise.to(tensor.device), None

    def guarantee(self) -> Guarantee:
        """Return that there is none, and why."""
        why = "an obfuscation: what noise is added to has no bound"
        return Guarantee("record", None, reasons=(why,))


class LowResolutionConfig(ShieldConfig):
    """Settings of :class:`LowResolution`.

    Attributes
    ----------
    side : int
        Side of the reduced image in pixels.
    """

    name: Literal["low-resolution"] = "low-resolution"
    side: int = Field(default=16, ge=1)


class LowResolution(Shield):
    """Averages an image over blocks, then interpolates it to the old size (bilinear)."""

    schema = LowResolutionConfig
    config: LowResolutionConfig

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
        """Return the tensor with fewer details; see :meth:`Shield.protect`."""
        left = adaptive_avg_pool2d(self.validate_input(tensor), self.config.side)
        return interpolate(left, size=self.shape[1:], mode="bilinear", align_corners=False), None

    def guarantee(self) -> Guarantee:
        """Return that there is none, and why."""
        why = "an obfuscation: what it removes can't be recovered, what it leaves everybody can see"
        return Guarantee("record", None, reasons=(why,))
