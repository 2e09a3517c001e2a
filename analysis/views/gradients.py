"""Gradients and updates that nodes return: what attacks on them work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import torch
from torch import nn

from pudica.clients.data import ImageSet
from pudica.clients.shields import Shape
from pudica.models import packing
from pudica.models.compute import Compute
from pudica.models.randomness import numpy_generator

MOST = 24
"""Gradients that are noted, the first that cross: there they are largest."""
LARGEST = 2**27
"""Most values of weights and gradients that are kept: 512 MiB."""
CONTROLS = 12
"""Images of the positive control, one to a gradient."""


@dataclass(frozen=True, eq=False)
class Gradient:
    """One gradient of a node, and what crossed or is public with it.

    Attributes
    ----------
    node : int
        The number of the node that returned it.
    turn : int
        When: the exchange's number.
    state : float32 Tensor of shape (s,)
        The weights and buffers that it was computed at, packed.
    values : float32 Tensor of shape (p,)
        The gradient of the parameters, packed.
    sizes : tuple of int
        Images of each batch behind it.
    labels : int64 Tensor of shape (B,), or None
        Of all those images, where they cross in the clear.
    """

    node: int
    turn: int
    state: torch.Tensor
    values: torch.Tensor
    sizes: tuple[int, ...]
    labels: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """Number of images behind it."""
        return sum(self.sizes)

    @property
    def size(self) -> int:
        """Number of values that are kept of it."""
        return self.state.numel() + self.values.numel()


@dataclass(frozen=True, eq=False)
class GradientsView(ABC):
    """Gradients that an honest but curious cloud gets, and how they are computed.

    Attributes
    ----------
    name : str
        Of run and case.
    seen : tuple of Gradient
        In the order in which they crossed.
    model : Module
        Of which they are gradients: architecture and mode of training; any weights.
    shape : tuple of int
        Of an image, (C, H, W).
    mean, std : Tensor of shape (C, 1, 1)
        By which nodes normalise pixels in [0, 1].
    blind : Tensor of shape (C, H, W)
        The image that one guesses who sees no gradient, in [0, 1].
    classes : int
    device : Compute
        Where the adversary computes: like the run's nodes.
    single : bool
        Whether each gradient is of one image that nothing protects, as in the positive control.
    """

    name: str
    seen: tuple[Gradient, ...]
    model: nn.Module
    shape: Shape
    mean: torch.Tensor
    std: torch.Tensor
    blind: torch.Tensor
    classes: int
    device: Compute
    single: bool = field(default=False, kw_only=True)

    @abstractmethod
    def loss(self, gradient: Gradient, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of which a node took the gradient.

        Parameters
        ----------
        x : Tensor of shape (B, C, H, W)
            Normalised images, all batches one after the other.
        labels : int64 Tensor of shape (B,)
        """

    @abstractmethod
    def pick(self, gradient: Gradient, row: int) -> Gradient:
        """Return a gradient of one of its images alone; its values are still those of all."""

    def load(self, gradient: Gradient) -> None:
        """Put the weights into the model at which a gradient was computed."""
        values = gradient.state.to(self.device.device)
        packing.unpack(values, self.tensors())

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """Return the model's tensors in the order in which :attr:`Gradient.state` has them."""

    def compute(
        self,
        gradient: Gradient,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        differentiable: bool = False,
    ) -> torch.Tensor:
        """Return the gradient, (p,), that other images would have given, packed.

        Parameters
        ----------
        gradient : Gradient
            In whose place; its weights are in the model, see :meth:`load`.
        pixels : Tensor of shape (B, C, H, W)
            In [0, 1].
        labels : int64 Tensor of shape (B,)
        differentiable : bool
            With respect to the images.
        """
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        loss = self.loss(gradient, (pixels - mean) / std, labels)
        parameters = list(self.model.parameters())
        found = torch.autograd.grad(
            loss, parameters, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        return torch.cat([each.reshape(-1) for each in found])


def split_batches(gradient: Gradient) -> list[slice]:
    """Return where in all images behind a gradient each of its batches is."""
    return [slice(*ends) for ends in pairwise(accumulate(gradient.sizes, initial=0))]


@dataclass(frozen=True, eq=False)
class GradientTarget:
    """A view of gradients, and the images behind them.

    Attributes
    ----------
    view : GradientsView
    shares : tuple of ImageSet
        The training images of each node, as the model is shown them. Positions count them all,
        one node after the other.
    behind : tuple of int64 ndarray of shape (B,)
        For each gradient, the positions of its images.
    """

    view: GradientsView
    shares: tuple[ImageSet, ...]
    behind: tuple[np.ndarray, ...]

    @cached_property
    def labels(self) -> np.ndarray:
        """The classes of all images, int64 of shape (N,)."""
        return np.concatenate([share.labels for share in self.shares])

    def pixels(self, positions: np.ndarray) -> torch.Tensor:
        """Return some images, not normalised: (n, C, H, W) in [0, 1]."""
        ends = np.cumsum([0, *map(len, self.shares)])
        found = torch.empty(len(positions), *self.view.shape)
        for share, (first, last) in zip(self.shares, pairwise(ends), strict=True):
            own = np.flatnonzero((first <= positions) & (positions < last))
            if len(own):
                found[own] = share.pixels(positions[own] - first)
        return found

    def keep(self, places: Sequence[int]) -> Self:
        """Return the same target with some of its gradients."""
        seen = tuple(self.view.seen[place] for place in places)
        behind = tuple(self.behind[place] for place in places)
        return replace(self, view=replace(self.view, seen=seen), behind=behind)

    def choose(self, count: int, seed: int, largest: int) -> tuple[Self, np.ndarray]:
        """Return a target of fewer gradients, and images among which theirs are to be found.

        Gradients are the first that have no image in common, at least one, and as many as half of
        the images are behind. The other half are drawn from all nodes' images.

        Parameters
        ----------
        count : int
            Of the images; if a single gradient is of more than half as many, twice those.
        largest : int
            Most images behind a gradient; others are left out.

        Returns
        -------
        target : GradientTarget
        candidates : int64 ndarray of shape (n,)
            Positions.
        """
        places: list[int] = []
        chosen = np.zeros(0, np.int64)
        for place, images in enumerate(self.behind):
            fits = 2 * (len(chosen) + len(images)) <= count or not places
            if fits and len(images) <= largest and not np.isin(images, chosen).any():
                places.append(place)
                chosen = np.concatenate([chosen, images])
        others = numpy_generator(seed, "candidates").permutation(len(self.labels))
        others = others[~np.isin(others, chosen)]
        wanted = max(count, 2 * len(chosen)) - len(chosen)
        return self.keep(places), np.concatenate([chosen, others[:wanted]])

    def in_the_clear(self) -> Self:
        """Return the positive control: gradients of one image each, in one step, unprotected."""
        where = [(k, i) for k, images in enumerate(self.behind) for i in range(len(images))]
        view = replace(self.view, single=True)
        seen, behind = [], []
        for k, i in where[:CONTROLS]:
            position = self.behind[k][[i]]
            single = view.pick(view.seen[k], i)
            view.load(single)
            pixels = self.pixels(position).to(view.device.device)
            labels = torch.from_numpy(self.labels[position]).to(view.device.device)
            seen.append(replace(single, values=view.compute(single, pixels, labels).cpu()))
            behind.append(position)
        return replace(self, view=replace(view, seen=tuple(seen)), behind=tuple(behind))
