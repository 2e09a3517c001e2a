"""Decoys fill incomplete groups of a request: they are made from images, never from features.

A decoy that is a linear combination of transmitted rows would reveal them without the key: in the
null space of all rows, those of one group lie on a line, which is the column of its matrix. So
decoys are combined from images and pass through the first layers like images.
"""

from __future__ import annotations

import numpy as np
import torch

from pudica.clients.shields.base import ShieldConfig
from pudica.clients.shields.mixing import MixingConfig, padded_count
from pudica.models.randomness import Randomness

NOISE = 0.1
"""Noise in each decoy, relative to the images' standard deviation. It is needed behind linear
layers, where a combination of images is also a combination of features."""


def count_missing(count: int, config: ShieldConfig) -> int:
    """Return how many decoys fill the last group of ``count`` images; ValueError if none may."""
    lacking = padded_count(count, config) - count
    if lacking and isinstance(config, MixingConfig) and not config.pad:
        raise ValueError(
            f"{count} examples are not whole groups of {config.group}; send a multiple of "
            f"{config.group}, or set pad: true"
        )
    return lacking


def make_decoys(images: torch.Tensor, count: int, randomness: Randomness) -> torch.Tensor:
    """Return ``count`` random combinations of mirrored images (n, C, H, W), each with own noise."""
    drawn = randomness.standard_normal((count, len(images)), dtype=np.float32)
    coefficients = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    combined = torch.tensordot(coefficients.to(images.device), images.flip(3), 1)
    noise = torch.from_numpy(randomness.standard_normal(tuple(combined.shape), dtype=np.float32))
    made: torch.Tensor = combined + NOISE * images.std() * noise.to(images.device)
    return made


def fill_groups(images: torch.Tensor, config: ShieldConfig, randomness: Randomness) -> torch.Tensor:
    """Return images in complete groups, decoys appended; ValueError as :func:`count_missing`."""
    lacking = count_missing(len(images), config)
    if not lacking:
        return images
    return torch.cat([images, make_decoys(images, lacking, randomness)])
