"""What fills the groups that a request's images leave open: images of nobody, never features.

A decoy that is a linear combination of rows that cross too gives them away without any key: in the
null space of all rows, those of one group lie on a line, which is the column of its matrix. So
decoys are made of images, and pass the first layers as images do.
"""

from __future__ import annotations

import numpy as np
import torch

from pudica.clients.shields.base import ShieldConfig
from pudica.clients.shields.mixing import MixingConfig, padded_count
from pudica.models.randomness import Randomness

NOISE = 0.1
"""Of each decoy's own, as a share of the images' deviation: behind layers that are linear a
combination of images is one of features too."""


def count_missing(count: int, config: ShieldConfig) -> int:
    """Return how many decoys fill the last group of so many images.

    Raises
    ------
    ValueError
        It is not full, and not to be filled.
    """
    lacking = padded_count(count, config) - count
    if lacking and isinstance(config, MixingConfig) and not config.pad:
        raise ValueError(
            f"{count} examples are no whole groups of {config.group}; send a multiple of "
            f"{config.group}, or set pad: true"
        )
    return lacking


def make_decoys(images: torch.Tensor, count: int, randomness: Randomness) -> torch.Tensor:
    """Return random combinations of mirrored images, each with noise of its own.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        Those that they are made of.
    count : int

    Returns
    -------
    Tensor of shape (count, C, H, W)
    """
    drawn = randomness.standard_normal((count, len(images)), dtype=np.float32)
    coefficients = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    combined = torch.tensordot(coefficients.to(images.device), images.flip(3), 1)
    noise = torch.from_numpy(randomness.standard_normal(tuple(combined.shape), dtype=np.float32))
    made: torch.Tensor = combined + NOISE * images.std() * noise.to(images.device)
    return made


def fill_groups(images: torch.Tensor, config: ShieldConfig, randomness: Randomness) -> torch.Tensor:
    """Return images in whole groups, decoys made of themselves at the end.

    Raises
    ------
    ValueError
        As of :func:`count_missing`.
    """
    lacking = count_missing(len(images), config)
    if not lacking:
        return images
    return torch.cat([images, make_decoys(images, lacking, randomness)])
