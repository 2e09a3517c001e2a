"""Images and labels of one part of a data set, ready for a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

Positions = NDArray[np.int64] | slice


@dataclass(eq=False)
class ImageSet:
    """Some rows of a memory-mapped array of images.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, C, H, W)
        All images of the data set, usually memory-mapped.
    rows : ndarray of int64, shape (n,)
        The rows of ``images`` that belong to this part.
    labels : ndarray of int64, shape (n,)
        The class of each of these rows.
    mean, std : float32 tensors, shape (C, 1, 1)
        What :meth:`batch` subtracts from and divides pixels in [0, 1] by; zeros and ones for
        no normalisation.
    num_classes : int
        Number of classes of the whole data set.
    margin : int
        Black pixels that :meth:`pixels` adds on each side.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mean: Tensor
    std: Tensor
    num_classes: int
    margin: int = 0
    _normalised: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._normalised = bool((self.mean != 0).any() or (self.std != 1).any())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Return normalised images and their labels.

        Parameters
        ----------
        positions : ndarray of int64, shape (B,), or slice
            Which images, counted within this part.

        Returns
        -------
        images : float32 tensor, shape (B, C, H, W)
        labels : int64 tensor, shape (B,)
        """
        images = self.pixels(positions)
        if self._normalised:
            images.sub_(self.mean).div_(self.std)
        return images, torch.from_numpy(self.labels[positions].copy())

    def pixels(self, positions: Positions) -> Tensor:
        """Return images in [0, 1], not normalised: float32, shape (B, C, H, W)."""
        gathered = np.take(self.images, self.rows[positions], axis=0)
        images = torch.from_numpy(gathered).float().div_(255)
        return pad(images, [self.margin] * 4) if self.margin else images

    def subset(self, positions: Positions) -> ImageSet:
        """Return the part that holds only the images at ``positions``, without copying any."""
        return ImageSet(
            self.images,
            self.rows[positions],
            self.labels[positions],
            self.mean,
            self.std,
            self.num_classes,
            self.margin,
        )

    def denormalise(self, x: Tensor) -> Tensor:
        """Return normalised images in units of [0, 1]; shape (…, C, H, W), on any device."""
        return x * self.std.to(x.device) + self.mean.to(x.device)
