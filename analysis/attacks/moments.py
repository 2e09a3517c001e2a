"""Moments: what is done to each pixel alone is undone by what its values are like.

Disguises that treat each pixel for itself, such as ``m·A + b``, leave its distribution as it was,
but for place and scale. The adversary gives each pixel the mean and deviation that it has in images
of its own. A pixel that may be inverted, too, as by Kiya, is turned to the same skewness.
"""

from __future__ import annotations

import numpy as np
import torch

from pudica.analysis.attacks.base import Attack, Effort, Outcome
from pudica.analysis.attacks.inversion import compare, describe_mean, name_pictures
from pudica.analysis.attacks.learning import LEAST, explain_few
from pudica.analysis.views.dlmt import DisguisedView
from pudica.analysis.views.releases import Target
from pudica.clients.shields.disguises import parse_notation
from pudica.clients.shields.disguises.breaks import is_affine

FLAT = 1e-9


class Moments(Attack):
    """Undoes a disguise of single pixels, with images of its own."""

    kind = "moments"
    goal = "image"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        return explain_no_disguise(target) or explain_few(target.view.own)

    def run(self, target: Target, effort: Effort) -> Outcome:  # noqa: ARG002
        """Undo the disguise of all images under one key together."""
        true, drawn = target.pixels, undo(as_disguised(target))
        found = {**compare(drawn, true), **describe_mean(target.view.own, true)}
        return Outcome(
            {"chance": 1 / len(true), "releases": 1, **found}, name_pictures(true, {"": drawn})
        )


def as_disguised(target: Target) -> DisguisedView:
    """Return a target's view, which :func:`explain_no_disguise` found to be of disguised images."""
    assert isinstance(target.view, DisguisedView)
    return target.view


def explain_no_disguise(target: Target) -> str:
    """Return that no disguised images cross, or ""."""
    if not isinstance(target.view, DisguisedView) or target.view.disguise is None:
        return "no disguised images cross"
    few = int(np.bincount(target.view.keys).max())
    return f"{few} images under one key are fewer than {LEAST}" if few < LEAST else ""


def undo(view: DisguisedView) -> torch.Tensor:
    """Return images (n, C, H, W) in [0, 1] with the moments of the adversary's own."""
    assert view.disguise is not None
    own = view.own.pixels(slice(None)).double()
    mean, std = own.mean(0), own.std(0)
    drawn = torch.empty_like(view.seen[:, 0])
    for key in np.unique(view.keys):
        rows = np.flatnonzero(view.keys == key)
        seen = _standardise(view.seen[rows, 0].double())
        if not is_affine(parse_notation(view.disguise)):
            turned = seen.pow(3).mean(0) * _standardise(own).pow(3).mean(0) < 0
            seen = torch.where(turned, -seen, seen)
        drawn[rows] = (mean + std * seen).clamp(0, 1).float()
    return drawn


def _standardise(images: torch.Tensor) -> torch.Tensor:
    spread = images.std(0)
    return (images - images.mean(0)) / torch.where(spread > FLAT, spread, 1.0)
