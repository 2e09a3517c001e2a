"""Networks that an adversary trains on releases of its own images, to read those of others.

It lets its images through the fronts that it knows and through the shield, again and again with new
noise and keys, as often as each attacked image was released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import nn

from pudica.analysis.views.releases import ReleasesView
from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.models.randomness import derive, numpy_generator, temporary_seed

WIDTH = 512
LEARNING_RATE = 1e-3
BATCH = 128
LEAST = 64
"""Own images to learn from, at least."""
LARGEST = 2**28
"""Most values of own images' activations that are kept: 1 GiB."""
STEPS = 300
"""For each epoch of effort: as many as 38,400 images take, however few the adversary has."""

Loss = Callable[[torch.Tensor, np.ndarray], torch.Tensor]
"""Of the network's output for some of the adversary's images, and their positions."""


class Reader(nn.Module):
    """A perceptron from all releases of an image, (B, k, *shape), to some outputs (B, outputs).

    The first layer is one matrix for all releases, which are added up: the noise of each has its
    share, and there are no more weights to learn than for one.
    """

    def __init__(self, sees: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        releases, features = sees[0], math.prod(sees[1:])
        self.scale = nn.BatchNorm1d(releases * features, affine=False)
        self.take_in = nn.Linear(features, WIDTH)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, (B, outputs)."""
        mean = self.scale(x.flatten(1)).unflatten(1, (x.shape[1], -1)).mean(1)
        return self.layers(self.take_in(mean))  # type: ignore[no-any-return]


def explain_few(own: ImageSet) -> str:
    """Return that the adversary has too few images to learn from, or ""."""
    few = len(own)
    return f"the adversary has {few} images of its own, fewer than {LEAST}" if few < LEAST else ""


def choose_own(view: ReleasesView) -> slice:
    """Return which of the adversary's own images it learns from: as many as fit into memory."""
    values = math.prod(view.seen.shape[1:])
    return slice(0, min(len(view.own), max(LEAST, LARGEST // values)))


def train_reader(
    view: ReleasesView, own: Positions, outputs: int, loss: Loss, steps: int, seed: int
) -> nn.Module:
    """Train a :class:`Reader` on releases of the adversary's own images.

    Parameters
    ----------
    own : slice or ndarray
        Positions in ``view.own``.
    loss : callable
        Gets outputs (B, outputs) and the positions (B,) within ``own`` that they are for.
    steps : int, in batches
    """
    with temporary_seed(derive(seed, "decoder")):
        reader = Reader(tuple(view.seen.shape[1:]), outputs)
    view.device.move_model(reader)
    values = view.compute(view.own, own, seed)
    randomness = numpy_generator(seed, "inversion")
    optimizer = torch.optim.Adam(reader.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    reader.train()
    for chosen in islice(_draw_batches(len(values), randomness), steps):
        sent = view.device.move_batch(view.protect(values[chosen], randomness))
        optimizer.zero_grad()
        loss(reader(sent), chosen.numpy()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return reader.eval()


@torch.no_grad()
def read(view: ReleasesView, reader: nn.Module) -> torch.Tensor:
    """Return a reader's outputs for the attacked images: (n, outputs)."""
    parts = view.seen.split(BATCH)
    return torch.cat([reader(view.device.move_batch(part)).cpu() for part in parts])


def _draw_batches(count: int, randomness: np.random.Generator) -> Iterator[torch.Tensor]:
    """Yield full batches, of an order that is drawn anew whenever images run out."""
    size = min(count, BATCH)
    while True:
        order = torch.from_numpy(randomness.permutation(count))
        yield from order[: count // size * size].split(size)
