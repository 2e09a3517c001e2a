"""Keyless baselines: noise and blur. Their outputs are still pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pudica.clients.shields.disguises.noise import NOISE_KEY, draw_image_noise, draw_noise_key
from pudica.clients.shields.disguises.steps import ImageShape, Span, Step, Tensors
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness

LEAST = 0.1


@dataclass(frozen=True)
class _Picture(Step):
    """A lossy step from pixels to pixels."""

    sigma: float
    most: ClassVar[float]

    def __post_init__(self) -> None:
        """Check sigma."""
        if not LEAST <= self.sigma <= self.most:
            raise RequestError(
                f"{self.name}: sigma must be {LEAST:g} to {self.most:g}, is {self.sigma:g}"
            )

    @property
    def is_invertible(self) -> bool:
        """Always False: information is lost."""
        return False

    def span(self, before: Span) -> Span:
        """Pixels stay pixels."""
        return before


@dataclass(frozen=True)
class GaussianNoise(_Picture):
    """Gaussian noise with standard deviation ``sigma`` on pixels 0 to 255, rounded and clamped."""

    name: ClassVar[str] = "Noise"
    most: ClassVar[float] = 1000

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Draw the key that each image's noise is derived from."""
        return draw_noise_key(randomness)

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Add noise that depends on the key and the image."""
        drawn = draw_image_noise(images, key[NOISE_KEY], lambda r, shape: r.standard_normal(shape))
        noisy = images.float().add_(drawn, alpha=self.sigma)
        return noisy.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Blur(_Picture):
    """Gaussian blur with standard deviation ``sigma`` in pixels, truncated at 3 ``sigma``."""

    name: ClassVar[str] = "Blur"
    most: ClassVar[float] = 100

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Check the images' size: pixels beyond an edge are mirrored once at most."""
        reach, side = math.ceil(3 * self.sigma), min(shape[1:])
        if reach >= side:
            raise RequestError(
                f"Blur: sigma = {self.sigma:g} reaches {reach} pixels, and images are "
                f"{shape[1]}x{shape[2]}; allowed: up to {(side - 1) / 3:.3g}"
            )
        return {}

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Blur."""
        from torchvision.transforms import functional  # slow to import

        size = 2 * math.ceil(3 * self.sigma) + 1
        blurred: torch.Tensor = functional.gaussian_blur(
            images, [size, size], [self.sigma, self.sigma]
        )
        return blurred
