"""Noise drawn per image: the same whenever that image is disguised again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from pudica.clients.shields.disguises.steps import Tensors
from pudica.models.randomness import Randomness, SecretGenerator

NOISE_KEY = "noise"

Draw = Callable[[SecretGenerator, tuple[int, ...]], np.ndarray]


def draw_noise_key(randomness: Randomness) -> Tensors:
    """Draw a noise key of 32 random bytes."""
    return {NOISE_KEY: torch.frombuffer(bytearray(randomness.bytes(32)), dtype=torch.uint8)}


def draw_image_noise(images: torch.Tensor, key: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Draw float32 noise for each image (B, C, H, W).

    It depends on the key and the image's content only. So nobody who sees an image disguised
    twice can average it away, and neither the order nor the size of batches matters.

    Parameters
    ----------
    key : uint8 tensor of shape (32,)
    draw : callable
        Draws noise of a shape from a generator.
    """
    secret = key.numpy().tobytes()
    noise = np.empty(tuple(images.shape), np.float32)
    for number, image in enumerate(images.contiguous().numpy()):
        digest = hashlib.blake2b(image.tobytes(), digest_size=32).digest()
        noise[number] = draw(SecretGenerator(secret, digest), image.shape)
    return torch.from_numpy(noise)
