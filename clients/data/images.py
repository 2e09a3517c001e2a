"""Images and labels of one part of a data set, ready for a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from clients.shields.disguises import Disguise

STATISTICS_CHUNK = 500
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
    disguise : Disguise or None
        What is done to images before anybody sees them, margin and all.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mean: Tensor
    std: Tensor
    num_classes: int
    margin: int = 0
    disguise: Disguise | None = None
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
        """Return images in [0, 1], not normalised: float32, shape (B, C, H, W).

        Of disguised ones 0 and 1 are the least and the greatest value that there can be.
        """
        if self.disguise is None:
            return self.raw(positions).float().div_(255)
        low, high = self.disguise.span.low, self.disguise.span.high
        # In float64, which is exact, until they are scaled.
        values = self.disguise.protect(self.raw(positions)).double()
        return values.sub_(low).div_(high - low).float()

    def raw(self, positions: Positions) -> Tensor:
        """Return plain images with their margin: uint8, shape (B, C, H, W)."""
        images = torch.from_numpy(np.take(self.images, self.rows[positions], axis=0))
        return pad(images, [self.margin] * 4) if self.margin else images

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of :meth:`pixels`, (C, 1, 1).

        As they are read, a chunk at a time: the images need not fit into memory. A channel that
        never changes has standard deviation 1, so that it can be divided by.
        """
        total, squares = torch.zeros(2, self.images.shape[1], dtype=torch.float64)
        count = 0
        for start in range(0, len(self), STATISTICS_CHUNK):
            chunk = self.pixels(slice(start, start + STATISTICS_CHUNK)).double()
            # About one half, near which the values lie: what is small is squared precisely.
            values = chunk.transpose(0, 1).flatten(1).sub_(0.5)
            count += values.shape[1]
            total += values.sum(1)
            squares += values.square().sum(1)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-12, std, 1.0)
        return (mean + 0.5).float().reshape(-1, 1, 1), std.float().reshape(-1, 1, 1)

    def subset(self, positions: Positions) -> ImageSet:
        """Return the part that holds only the images at ``positions``, without copying any."""
        return replace(self, rows=self.rows[positions], labels=self.labels[positions])

    def denormalise(self, x: Tensor) -> Tensor:
        """Return normalised images in units of [0, 1]; shape (…, C, H, W), on any device."""
        return x * self.std.to(x.device) + self.mean.to(x.device)
