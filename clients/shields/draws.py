"""Random matrices and permutations, from a seeded stream or the system's randomness."""

from __future__ import annotations

import math

import numpy as np
import torch

from pudica.models.randomness import Randomness


def draw_orthogonal(shape: tuple[int, ...], randomness: Randomness) -> torch.Tensor:
    """Draw orthogonal matrices (…, b, b), uniformly, as float32.

    The distribution is that of ``scipy.stats.ortho_group``, which accepts no secret randomness.
    """
    normal = randomness.standard_normal(shape, dtype=np.float64)
    q, r = np.linalg.qr(normal)
    # QR alone is biased; the signs of r's diagonal make it uniform (Mezzadri 2007).
    signs = np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return torch.from_numpy((q * signs).astype(np.float32))


def draw_permutations(shape: tuple[int, ...], randomness: Randomness) -> torch.Tensor:
    """Draw permutations of the last dimension, int64."""
    bits = np.frombuffer(randomness.bytes(8 * math.prod(shape)), np.uint64).reshape(shape)
    return torch.from_numpy(np.argsort(bits, axis=-1, kind="stable"))
