"""What somebody without the key makes of disguised images: each pixel's z-score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pudica.clients.data import ImageSet


class Standardiser:
    """Undoes what is affine in each pixel: by its mean and deviation, with no key.

    Disguised pixels are standardised by their own statistics, and brought to those of other
    plain images of the same kind.

    Parameters
    ----------
    seen : ImageSet
        Disguised images.
    known : ImageSet
        Plain ones, none of them among the disguised.
    """

    def __init__(self, seen: ImageSet, known: ImageSet) -> None:
        self._seen = seen.statistics(over=(0,))
        self._known = known.statistics(over=(0,))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return images in [0, 1] from disguised ones, (B, C, H, W)."""
        (mean, std), (plain_mean, plain_std) = self._seen, self._known
        return ((pixels - mean) / std * plain_std + plain_mean).clamp(0, 1)


class Standardised:
    """Images that were disguised, and standardised by somebody without the key."""

    def __init__(self, images: ImageSet, standardiser: Standardiser) -> None:
        self.images = images
        self._standardiser = standardiser

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
        seen = self._standardiser(self.images.pixels(positions))
        return self.images.normalise(seen), torch.from_numpy(self.images.labels[positions].copy())
