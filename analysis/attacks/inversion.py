"""Learned inversion: a decoder from what crosses to the image.

The adversary lets its own images through the fronts that it knows and through the shield, again and
again with new noise, and trains a decoder to draw them. All releases of an image are given to the
decoder together, so that it averages their noise as well as that can be done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from pudica.analysis.attacks.base import (
    CLEAR,
    SHOWN,
    Attack,
    Effort,
    Metrics,
    Outcome,
    count_successes,
)
from pudica.analysis.views.releases import ReleasesView, Target
from pudica.clients.data.images import Positions
from pudica.models.randomness import derive, numpy_generator, temporary_seed
from pudica.models.similarity import psnr, ssim

WIDTH = 512
LEARNING_RATE = 1e-3
BATCH = 128
LEAST = 64
"""Own images to learn from, at least."""
LARGEST = 2**28
"""Most values of own images' activations that are kept: 1 GiB."""
STEPS = 300
"""For each epoch of effort: as many as 38,400 images take, however few the adversary has."""
MEAN = 1000
"""Own images of which a blind guess is the mean."""


class LearnedInversion(Attack):
    """Draws images from their releases, and picks each one out of all that were attacked."""

    kind = "inversion"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        few = len(target.view.own)
        words = f"the adversary has {few} images of its own, fewer than {LEAST}"
        return words if few < LEAST else ""

    def run(self, target: Target, effort: Effort) -> Outcome:
        """Invert the last release of each image, all of them, and all without noise."""
        true, view = target.pixels, target.view
        metrics: Metrics = {"chance": 1 / view.count, "releases": view.releases}
        drawn: dict[str, torch.Tensor] = {}
        views = {"_once": view.last(1), "": view, CLEAR: target.in_the_clear(effort.seed).view}
        for suffix, sees in views.items():
            if suffix == "_once" and view.releases == 1:
                continue
            drawn[suffix] = invert(sees, STEPS * effort.epochs, effort.seed)
            metrics |= {f"{k}{suffix}": v for k, v in compare(drawn[suffix], true).items()}
        blind = view.own.pixels(slice(0, MEAN)).mean(0).expand_as(true)
        metrics |= {f"{k}_of_the_mean": v for k, v in likeness(blind, true).items()}
        names = {"": "from all releases", "_once": "from one", CLEAR: "from all, in the clear"}
        pictures = {"original": true, **{names[suffix]: each for suffix, each in drawn.items()}}
        return Outcome(metrics, {name: each[:SHOWN].numpy() for name, each in pictures.items()})


def invert(view: ReleasesView, steps: int, seed: int) -> torch.Tensor:
    """Train a decoder for a view, and return what it draws of the images there: (n, C, H, W)."""
    values = math.prod(view.seen.shape[1:])
    own = slice(0, min(len(view.own), max(LEAST, LARGEST // values)))
    true = view.own.pixels(own)
    with temporary_seed(derive(seed, "decoder")):
        decoder = Decoder(view.seen.shape[1:], true.shape[1:])
    view.device.move_model(decoder)
    _train(decoder, view, own, true, steps, seed)
    with torch.no_grad():
        parts = view.seen.split(BATCH)
        return torch.cat([decoder(view.device.move_batch(part)).cpu() for part in parts])


def likeness(drawn: torch.Tensor, true: torch.Tensor) -> Metrics:
    """Return mean PSNR in dB and SSIM of images (n, C, H, W) in [0, 1]."""
    return {"psnr": float(psnr(drawn, true).mean()), "ssim": float(ssim(drawn, true).mean())}


def compare(drawn: torch.Tensor, true: torch.Tensor) -> Metrics:
    """Return :func:`likeness`, and how often the nearest of all true images is the right one."""
    nearest = torch.cdist(drawn.flatten(1), true.flatten(1)).argmin(1).numpy()
    hits = nearest == np.arange(len(true))
    return {**likeness(drawn, true), **count_successes(hits)}


class Decoder(nn.Module):
    """A perceptron from all releases of an image, (B, k, *shape), to the image in [0, 1]."""

    def __init__(self, sees: tuple[int, ...], image: tuple[int, ...]) -> None:
        super().__init__()
        self.image = tuple(image)
        features = math.prod(sees)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(features, affine=False),
            nn.Linear(features, WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, math.prod(image)),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return drawn images, (B, C, H, W)."""
        return self.layers(x).reshape(len(x), *self.image)  # type: ignore[no-any-return]


def _train(
    decoder: nn.Module,
    view: ReleasesView,
    own: Positions,
    true: torch.Tensor,
    steps: int,
    seed: int,
) -> None:
    values = view.compute(view.own, own, seed)
    randomness = numpy_generator(seed, "inversion")
    optimizer = torch.optim.Adam(decoder.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    decoder.train()
    for chosen in islice(_draw_batches(len(true), randomness), steps):
        sent = view.device.move_batch(view.protect(values[chosen], randomness))
        loss = mse_loss(decoder(sent), view.device.move_batch(true[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    decoder.eval()


def _draw_batches(count: int, randomness: np.random.Generator) -> Iterator[torch.Tensor]:
    """Yield full batches, of an order that is drawn anew whenever images run out."""
    size = min(count, BATCH)
    while True:
        order = torch.from_numpy(randomness.permutation(count))
        yield from order[: count // size * size].split(size)
