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
from pudica.clients.shields.disguises import KeyedDisguise, Span

STATISTICS_CHUNK = 500
Positions = NDArray[np.int64] | slice


@dataclass(eq=False)
class ImageSet:
    """Some rows of a memory-mapped array of images.

    Parameters
    ----------
    images : ndarray, shape (N, C, H, W)
        All images of the data set, usually memory-mapped; uint8, except for images that are
        disguised on disk.
    rows, labels : ndarray of int64, shape (n,)
        The rows of ``images`` that belong to this part, and their classes.
    mean, std : float32 tensors, shape (C, 1, 1)
        Normalisation that :meth:`batch` applies to pixels in [0, 1]; zeros and ones for none.
    margin : int
        Black pixels added on each side.
    disguise : KeyedDisguise or None
        Applied to images, including their margin, before anybody sees them.
    stored : Span
        Value range of ``images``.
    attributes : ndarray of int64, shape (n, A)
        Binary attributes of each of these rows.
    """

    images: NDArray[np.generic]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    mean: Tensor
    std: Tensor
    num_classes: int
    margin: int = 0
    disguise: KeyedDisguise | None = None
    stored: Span = field(default_factory=Span)
    attributes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    _needs_normalising: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._needs_normalising = bool((self.mean != 0).any() or (self.std != 1).any())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, positions: Positions, augment: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return normalised images, float32 of shape (B, C, H, W), and their labels, int64 (B,).

        Parameters
        ----------
        positions : ndarray of int64, shape (B,), or slice
            Positions within this part.
        augment : callable or None
            Augments plain images in [0, 1] before they are disguised; the result is rounded to
            whole pixel values.
        """
        plain = self.plain_images(positions)
        if augment is not None:
            if plain.dtype != torch.uint8:
                raise DataError(
                    "these images were disguised before they came here, and can't be augmented "
                    "before that; set augment_first: false"
                )
            plain = augment(plain.float().div_(255)).clamp(0, 1).mul_(255).round_().to(torch.uint8)
        images = self._scale_to_unit(self.disguise.protect(plain) if self.disguise else plain)
        return self.normalise(images), torch.from_numpy(self.labels[positions].copy())

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1] by mean and standard deviation, in place; return them."""
        return images.sub_(self.mean).div_(self.std) if self._needs_normalising else images

    def pixels(self, positions: Positions) -> Tensor:
        """Return images scaled to [0, 1], not normalised: float32, shape (B, C, H, W).

        For disguised images 0 and 1 are the ends of the possible value range.
        """
        return self._scale_to_unit(self.released_images(positions))

    def released_images(self, positions: Positions) -> Tensor:
        """Return images as they are released: disguised, unscaled, (B, C, H, W)."""
        plain = self.plain_images(positions)
        return self.disguise.protect(plain) if self.disguise else plain

    def plain_images(self, positions: Positions) -> Tensor:
        """Return images as they are stored, with margin: (B, C, H, W)."""
        images = torch.from_numpy(np.take(self.images, self.rows[positions], axis=0))
        return pad(images, [self.margin] * 4) if self.margin else images

    @property
    def span(self) -> Span:
        """Value range of :meth:`released_images`."""
        return self.disguise.span if self.disguise else self.stored

    @property
    def black(self) -> Tensor:
        """A black pixel in the units of :meth:`batch`, or the nearest possible value: (C, 1, 1)."""
        low, high = self.span.low, self.span.high
        value = min(max(0, low), high)
        return ((value - low) / (high - low) - self.mean) / self.std

    def _scale_to_unit(self, released: Tensor) -> Tensor:
        if released.dtype == torch.uint8:
            return released.float().div_(255)
        # Scale in float64, which represents the integers exactly.
        low, high = self.span.low, self.span.high
        return released.double().sub_(low).div_(high - low).float()

    def statistics(self, over: tuple[int, ...] = (0, 2, 3)) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of :meth:`pixels`, (C, 1, 1).

        A constant channel gets a standard deviation of 1, so that dividing by it is safe. With
        ``over=(0,)``, those of each pixel: (C, H, W).
        """
        mean, std = self.moments(over)
        return mean, torch.where(std > 0, std, 1.0)

    def moments(self, over: tuple[int, ...] = (0, 2, 3)) -> tuple[Tensor, Tensor]:
        """Return what :meth:`statistics` does, but 0 as the deviation of what is constant.

        Computed in chunks, so the images need not fit into memory.
        """
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for start in range(0, len(self), STATISTICS_CHUNK):
            # Centred on one half: squares of small values lose less precision.
            values = self.pixels(slice(start, start + STATISTICS_CHUNK)).double().sub_(0.5)
            count += math.prod(values.shape[dimension] for dimension in over)
            total = total + values.sum(over, keepdim=True)[0]
            squares = squares + values.square_().sum(over, keepdim=True)[0]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-12, std, 0.0)
        return (mean + 0.5).float(), std.float()

    def subset(self, positions: Positions) -> ImageSet:
        """Return the subset at ``positions``, without copying any image."""
        return replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            attributes=self.attributes[positions] if self.attributes.size else self.attributes,
        )

    def denormalise(self, x: Tensor) -> Tensor:
        """Undo the normalisation: return images in [0, 1], shape (…, C, H, W), on any device."""
        return x * self.std.to(x.device) + self.mean.to(x.device)
