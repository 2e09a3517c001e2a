"""A picture of what paper 001's matrix transformations hide from an attacker without the key."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pudica.analysis.drawing import draw_image_rows
from pudica.clients.shields.disguises import KeyedDisguise
from pudica.clients.shields.disguises.breaks import guess_offsets, invert_affine, recover_factors


def draw_breaks(disguise: KeyedDisguise, plain: NDArray[np.uint8], shown: int = 8) -> Figure:
    """Draw images plain, disguised, and as recovered from disguised ones alone.

    Parameters
    ----------
    disguise : KeyedDisguise
        A composition of MAT, MMT and Rise.
    plain : uint8 ndarray of shape (N, C, H, W)
        All of them are known to the attacker in disguise.
    shown : int
        Number of images to draw.
    """
    disguised = disguise.protect(torch.from_numpy(plain)).long().numpy()
    first = disguised[:shown]
    low, high = (end(first, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    rows = {
        "plain": plain[:shown] / 255,
        "disguised": (first - low) / np.maximum(high - low, 1),
    }
    for n in (20, 100, len(plain)):
        if n <= len(plain):
            m = recover_factors(disguised[:n])
            images = invert_affine(first, m, guess_offsets(disguised[:n], m, "mid-range"))
            rows[f"undone, {n:,} seen"] = images / 255
    return draw_image_rows(rows, f"{disguise.key.notation} without its key")
