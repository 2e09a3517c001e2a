"""Pixel-based image encryption by Kiya's group (Sirichotedumrong et al., ICIP 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pudica.clients.shields.disguises.steps import ImageShape, Span, Step, Tensors, is_permutation
from pudica.clients.shields.draws import draw_permutations
from pudica.models.randomness import Randomness


@dataclass(frozen=True)
class Kiya(Step):
    """Maps each value q to q or 255 − q by a key bit, then shuffles each pixel's colours.

    Each pixel has its own shuffle; grey images have none.
    """

    name: ClassVar[str] = "Kiya"

    def span(self, before: Span) -> Span:
        """Pixels stay pixels."""
        return before

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:
        """Draw ``flip`` (C, H, W), 0 or 255, and ``colours`` (C, H, W), the source channels."""
        channels, height, width = shape
        bits = np.frombuffer(randomness.bytes(math.prod(shape)), np.uint8) & 1
        orders = draw_permutations((height, width, channels), randomness)
        return {
            "flip": torch.from_numpy(bits.reshape(shape) * np.uint8(255)),
            "colours": orders.permute(2, 0, 1).contiguous(),
        }

    def is_valid_key(self, key: Tensors) -> bool:
        """Tell whether flips are 0 or 255 and colours are permutations."""
        flips = bool(((key["flip"] == 0) | (key["flip"] == 255)).all())
        return flips and is_permutation(key["colours"].movedim(0, -1))

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Flip, then shuffle."""
        flipped = images ^ key["flip"]  # 255 − q, in bits
        return flipped.gather(1, key["colours"].expand(len(images), -1, -1, -1))

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Shuffle back, then flip."""
        back = key["colours"].argsort(0).expand(len(images), -1, -1, -1)
        return images.gather(1, back) ^ key["flip"]
