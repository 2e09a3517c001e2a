"""What people use when nobody thinks of keys: noise and blur. Both leave an image a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torchvision.transforms import functional

from clients.shields.disguises.noise import NOISE_KEY, noise_key, noises
from clients.shields.disguises.steps import Shape, Span, Step, Tensors
from models.errors import RequestError
from models.randomness import Randomness


@dataclass(frozen=True)
class Noise(Step):
    """Gaussian noise of standard deviation ``sigma`` on pixels 0 to 255, rounded and cut off."""

    sigma: float
    name: ClassVar[str] = "Noise"
    invertible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check sigma."""
        if not 0 < self.sigma <= 1000:
            raise RequestError(f"Noise: sigma must be above 0 and at most 1000, is {self.sigma:g}")

    def span(self, before: Span) -> Span:
        """Pixels stay pixels."""
        return before

    def draw(self, shape: Shape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Return what the noise of each image is drawn from."""
        return noise_key(randomness)

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Add noise that hangs on the key and on the image."""
        drawn = noises(images, key[NOISE_KEY], lambda r, shape: r.standard_normal(shape))
        noisy = images.float().add_(drawn, alpha=self.sigma)
        return noisy.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Blur(Step):
    """Gaussian blur of standard deviation ``sigma`` in pixels, over three of them each way."""

    sigma: float
    name: ClassVar[str] = "Blur"
    invertible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check sigma."""
        if not 0 < self.sigma <= 100:
            raise RequestError(f"Blur: sigma must be above 0 and at most 100, is {self.sigma:g}")

    def span(self, before: Span) -> Span:
        """Pixels stay pixels."""
        return before

    def draw(self, shape: Shape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Check the images' size: what is beyond an edge is mirrored, once at most."""
        if math.ceil(3 * self.sigma) >= min(shape[1:]):
            raise RequestError(
                f"Blur: sigma = {self.sigma:g} reaches {math.ceil(3 * self.sigma)} pixels, and "
                f"images are {shape[1]}x{shape[2]}; allowed: up to "
                f"{(min(shape[1:]) - 1) / 3:.3g}"
            )
        return {}

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Blur."""
        size = 2 * math.ceil(3 * self.sigma) + 1
        blurred: torch.Tensor = functional.gaussian_blur(
            images, [size, size], [self.sigma, self.sigma]
        )
        return blurred
