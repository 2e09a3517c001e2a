"""Releases of images by nodes: what all attacks on what crossed work on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.clients.shields import Shape
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, numpy_generator
from pudica.strategies.core.wire_log import Exchanged

Note = Callable[[Exchanged], None]
"""What an observer does with each exchange of a case that is run again."""


class NothingCrossed(RequestError):
    """No image crossed that an attack could be on."""


Release = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ReleasesView(ABC):
    """What an honest but curious cloud has: some images' releases, and images of its own.

    Attributes
    ----------
    name : str
        Of run and case.
    seen : float32 Tensor of shape (n, k, *shape)
        What crossed of n images in k releases, in their order. Which releases are of the same
        image is public: the order of batches follows from the run's seed.
    nodes : int64 ndarray of shape (n,)
        Which node released each image.
    own : ImageSet
        Of the same kind as the nodes', and not theirs.
    device : Compute
        Where the adversary computes: like the run's nodes.
    noisy : bool
        Whether releases have the shield's noise.
    """

    name: str
    seen: torch.Tensor
    nodes: np.ndarray
    own: ImageSet
    device: Compute
    noisy: bool = field(default=True, kw_only=True)

    @property
    def count(self) -> int:
        """Number of images that are attacked."""
        return len(self.seen)

    @property
    def releases(self) -> int:
        """Number of releases of each image."""
        return self.seen.shape[1]

    @property
    def shape(self) -> Shape:
        """Shape of one release."""
        return tuple(self.seen.shape[2:])

    @property
    def is_keyed(self) -> bool:
        """Whether what crosses depends on a key that the adversary has not."""
        return False

    def last(self, releases: int) -> Self:
        """Return the same view with the last releases only."""
        return replace(self, seen=self.seen[:, -releases:])

    @abstractmethod
    def compute(
        self, images: ImageSet, positions: Positions, seed: int, node: int | None = None
    ) -> torch.Tensor:
        """Return what a node computes of other images, (·, k, *shape), before its shield.

        Parameters
        ----------
        node : int, optional
            Which one. By default any, drawn for each batch.
        """

    @abstractmethod
    def protect(self, values: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        """Return :meth:`compute`'s values as they would cross."""

    def function_of(self, node: int) -> Release:
        """Return what a node releases of images, but for noise: a differentiable function.

        It takes images in [0, 1], (n, C, H, W), on the adversary's device, and returns
        (n, k, *shape).

        Raises
        ------
        NotImplementedError
            Nobody but the owner can compute it; see :attr:`is_keyed`.
        """
        raise NotImplementedError(f"{self.name}: what crosses depends on a secret key")

    def variance(self) -> torch.Tensor | float:
        """Return the noise's variance of each value of a release, up to a factor."""
        return 1.0


def choose_slots(sizes: Sequence[int], count: int, seed: int) -> list[np.ndarray]:
    """Draw which images are attacked, at most ``count`` of all nodes'.

    Returns
    -------
    list of ndarray
        By node, for each of its images its number among those that are attacked, or -1.
    """
    total = sum(sizes)
    slots = np.full(total, -1)
    drawn = numpy_generator(seed, "attacked").permutation(total)[:count]
    slots[drawn] = np.arange(len(drawn))
    return np.split(slots, np.cumsum(sizes)[:-1])


def depict(view: ReleasesView, count: int) -> np.ndarray:
    """Return pictures of the last releases of the first images: (count, C, H, W) in [0, 1].

    Feature maps by their mean over channels, vectors as a square; each stretched to black and
    white, without the outermost hundredths.
    """
    seen = view.seen[:count, -1].float()
    if seen.ndim == 4 and seen.shape[1] not in (1, 3):
        seen = seen.mean(1, keepdim=True)
    if seen.ndim != 4:
        flat = seen.flatten(1)
        side = math.isqrt(flat.shape[1] - 1) + 1
        filled = torch.zeros(len(flat), side * side)
        filled[:, : flat.shape[1]] = flat
        seen = filled.reshape(-1, 1, side, side)
    values = seen.numpy()
    low, high = (np.quantile(values, q, axis=(1, 2, 3), keepdims=True) for q in (0.01, 0.99))
    shown: np.ndarray = ((values - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    return shown


@dataclass(frozen=True)
class Target:
    """A view, and the images behind it.

    Attributes
    ----------
    view : ReleasesView
    images : ImageSet
        Those that were released, in the order of ``view.seen``.
    """

    view: ReleasesView
    images: ImageSet

    @property
    def pixels(self) -> torch.Tensor:
        """The images, (n, C, H, W) in [0, 1]."""
        return self.images.pixels(slice(None))

    def last(self, releases: int) -> Target:
        """Return the same target with the last releases only."""
        return replace(self, view=self.view.last(releases))

    def in_the_clear(self, seed: int) -> Target:
        """Return the positive control: the same releases as they would be without noise."""
        view = replace(self.view, noisy=False)
        seen = torch.empty_like(view.seen)
        for node in np.unique(view.nodes):
            own = np.flatnonzero(view.nodes == node)
            values = view.compute(self.images, own, seed, int(node))
            seen[own] = view.protect(values, numpy_generator(seed, "unused"))
        return replace(self, view=replace(view, seen=seen))
