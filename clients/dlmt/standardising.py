"""What somebody without the key makes of disguised images: each pixel's z-score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pudica.clients.data import ImageSet


class PixelStandardiser:
    """Undoes what is affine in each pixel, without a key.

    Disguised pixels are standardised by their own mean and deviation, and brought to those of
    other plain images of the same kind.

    Parameters
    ----------
    disguised, plain : ImageSet
        They should have no image in common.
    """

    def __init__(self, disguised: ImageSet, plain: ImageSet) -> None:
        self._disguised = disguised.statistics(over=(0,))
        self._plain = plain.statistics(over=(0,))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return images in [0, 1] from disguised ones, (B, C, H, W)."""
        (mean, std), (plain_mean, plain_std) = self._disguised, self._plain
        return ((pixels - mean) / std * plain_std + plain_mean).clamp(0, 1)


@dataclass(frozen=True)
class StandardisedImages:
    """Disguised images that a model sees standardised."""

    images: ImageSet
    standardise: PixelStandardiser

    @property
    def black(self) -> torch.Tensor:
        """As of :attr:`ImageSet.black`."""
        return self.images.black

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self, positions: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised images and their labels, as :meth:`ImageSet.batch`."""
        if change is not None:
            raise ValueError("these are not plain images that could be changed")
        pixels = self.standardise(self.images.pixels(positions))
        return self.images.normalise(pixels), torch.from_numpy(self.images.labels[positions].copy())
