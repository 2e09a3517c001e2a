"""Learned inversion: a decoder from what crosses to the image.

All releases of an image are given to the decoder together, so that it averages their noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.functional import mse_loss

from pudica.analysis.attacks.base import (
    CLEAR,
    DRAWN,
    ORIGINAL,
    SHOWN,
    Attack,
    Effort,
    Metrics,
    Outcome,
    count_successes,
)
from pudica.analysis.attacks.learning import STEPS, choose_own, explain_few, read, train_reader
from pudica.analysis.views.releases import ReleasesView, Target
from pudica.models.similarity import psnr, ssim

MEAN = 1000
"""Own images of which a blind guess is the mean."""


class LearnedInversion(Attack):
    """Draws images from their releases, and picks each one out of all that were attacked."""

    kind = "inversion"
    goal = "image"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        return explain_few(target.view)

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
        metrics |= describe_mean(view, true)
        return Outcome(metrics, name_pictures(true, drawn))


def invert(view: ReleasesView, steps: int, seed: int) -> torch.Tensor:
    """Train a decoder for a view, and return what it draws of the images there: (n, C, H, W)."""
    own = choose_own(view)
    true = view.own.pixels(own)

    def loss(outputs: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        wanted = view.device.move_batch(true[chosen]).flatten(1)
        return mse_loss(outputs.sigmoid(), wanted)

    decoder = train_reader(view, own, true[0].numel(), loss, steps, seed)
    return read(view, decoder).sigmoid().reshape(-1, *true.shape[1:])


def name_pictures(true: torch.Tensor, drawn: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the rows of a figure: some true images, and what was drawn of them by view."""
    names = {"": DRAWN, "_once": f"{DRAWN} from one release", CLEAR: f"{DRAWN}, in the clear"}
    rows = {ORIGINAL: true, **{names[suffix]: images for suffix, images in drawn.items()}}
    return {name: images[:SHOWN].numpy() for name, images in rows.items()}


def likeness(drawn: torch.Tensor, true: torch.Tensor) -> Metrics:
    """Return mean PSNR in dB and SSIM of images (n, C, H, W) in [0, 1]."""
    return {"psnr": float(psnr(drawn, true).mean()), "ssim": float(ssim(drawn, true).mean())}


def compare(drawn: torch.Tensor, true: torch.Tensor) -> Metrics:
    """Return :func:`likeness`, and how often the nearest of all true images is the right one.

    Parameters
    ----------
    drawn : Tensor of shape (m, C, H, W)
        Of the first m of the true images.
    true : Tensor of shape (n, C, H, W)
    """
    nearest = torch.cdist(drawn.flatten(1), true.flatten(1)).argmin(1).numpy()
    hits = nearest == np.arange(len(drawn))
    return {**likeness(drawn, true[: len(drawn)]), **count_successes(hits)}


def describe_mean(view: ReleasesView, true: torch.Tensor) -> Metrics:
    """Return :func:`likeness` of the mean of the adversary's own images, which is a blind guess."""
    blind = view.own.pixels(slice(0, MEAN)).mean(0).expand_as(true)
    return {f"{name}_of_the_mean": value for name, value in likeness(blind, true).items()}
