"""Releases of images by nodes: what all attacks on what crossed work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.clients.shields import Shape
from pudica.models.compute import Compute
from pudica.models.randomness import Randomness, numpy_generator


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
