"""Images and labels of one part of a data set, ready for a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pudica.clients.data.errors import DataError
from pudica.clients.shields.disguises import Disguise, Span

STATISTICS_CHUNK = 500
Positions = NDArray[np.int64] | slice


@dataclass(eq=False)
class ImageSet:
    """Some rows of a memory-mapped array of images.

    Parameters
    ----------
    images : ndarray, shape (N, C, H, W)
        All images of the data set, usually memory-mapped: uint8, but for those that were
        disguised before they came here.
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
    stored : Span
        Where the values of ``images`` lie.
    attributes : ndarray of int64, shape (n, A)
        Which of these rows has which binary attribute.
    """

    images: NDArray[np.generic]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mean: Tensor
    std: Tensor
    num_classes: int
    margin: int = 0
    disguise: Disguise | None = None
    stored: Span = field(default_factory=Span)
    attributes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    _normalised: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._normalised = bool((self.mean != 0).any() or (self.std != 1).any())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, positions: Positions, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return normalised images and their labels.

        Parameters
        ----------
        positions : ndarray of int64, shape (B,), or slice
            Which images, counted within this part.
        change : callable or None
            Of plain images in [0, 1], before they are disguised; rounded to whole pixels.

        Returns
        -------
        images : float32 tensor, shape (B, C, H, W)
        labels : int64 tensor, shape (B,)
        """
        plain = self.plain(positions)
        if change is not None:
            if plain.dtype != torch.uint8:
                raise DataError(
                    "these images were disguised before they came here, and can't be augmented "
                    "before that; set augment_first: false"
                )
            plain = change(plain.float().div_(255)).clamp(0, 1).mul_(255).round_().to(torch.uint8)
        images = self._scaled(self._disguised(plain))
        return self.normalised(images), torch.from_numpy(self.labels[positions].copy())

    def normalised(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] less mean, over standard deviation; changes what it is given."""
        return images.sub_(self.mean).div_(self.std) if self._normalised else images

    def pixels(self, positions: Positions) -> Tensor:
        """Return images in [0, 1], not normalised: float32, shape (B, C, H, W).

        Of disguised ones 0 and 1 are the least and the greatest value that there can be.
        """
        return self._scaled(self.released(positions))

    def released(self, positions: Positions) -> Tensor:
        """Return images as whoever sees them gets them: disguised, exact, (B, C, H, W)."""
        return self._disguised(self.plain(positions))

    def plain(self, positions: Positions) -> Tensor:
        """Return images as they are stored, with their margin: (B, C, H, W)."""
        images = torch.from_numpy(np.take(self.images, self.rows[positions], axis=0))
        return pad(images, [self.margin] * 4) if self.margin else images

    @property
    def span(self) -> Span:
        """Where the values of :meth:`released` lie."""
        return self.disguise.span if self.disguise else self.stored

    @property
    def black(self) -> Tensor:
        """A black pixel as :meth:`batch` has it, or the nearest there can be: (C, 1, 1)."""
        low, high = self.span.low, self.span.high
        value = min(max(0, low), high)
        return ((value - low) / (high - low) - self.mean) / self.std

    def _disguised(self, plain: Tensor) -> Tensor:
        return self.disguise.protect(plain) if self.disguise else plain

    def _scaled(self, released: Tensor) -> Tensor:
        if released.dtype == torch.uint8:
            return released.float().div_(255)
        # In float64, which is exact, until they are scaled.
        low, high = self.span.low, self.span.high
        return released.double().sub_(low).div_(high - low).float()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of :meth:`pixels`, (C, 1, 1).

        As they are read, a chunk at a time: the images need not fit into memory. A channel that
        never changes has standard deviation 1, so that it can be divided by.
        """
        mean, std = self.moments()
        return mean, torch.where(std > 0, std, 1.0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel, which may be 0; (C, 1, 1)."""
        return self._moments((0, 2, 3))

    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each pixel, (C, H, W); as :meth:`statistics`."""
        mean, std = self._moments((0,))
        return mean, torch.where(std > 0, std, 1.0)

    def _moments(self, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for start in range(0, len(self), STATISTICS_CHUNK):
            # About one half, near which the values lie: what is small is squared precisely.
            values = self.pixels(slice(start, start + STATISTICS_CHUNK)).double().sub_(0.5)
            count += math.prod(values.shape[dimension] for dimension in over)
            total = total + values.sum(over, keepdim=True)[0]
            squares = squares + values.square_().sum(over, keepdim=True)[0]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-12, std, 0.0)
        return (mean + 0.5).float(), std.float()

    def subset(self, positions: Positions) -> ImageSet:
        """Return the part that holds only the images at ``positions``, without copying any."""
        return replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            attributes=self.attributes[positions] if self.attributes.size else self.attributes,
        )

    def denormalise(self, x: Tensor) -> Tensor:
        """Return normalised images in units of [0, 1]; shape (…, C, H, W), on any device."""
        return x * self.std.to(x.device) + self.mean.to(x.device)
