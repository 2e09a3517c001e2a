"""Known pairs: a disguise is learnt from a few images that are known in plain.

Whoever can slip images of its own among an owner's has such pairs. A linear map is fitted to them,
of each pixel alone and of all together, and the one that explains pairs best that were left out is
applied to all other images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from pudica.analysis.attacks.base import Attack, Effort, Metrics, Outcome
from pudica.analysis.attacks.inversion import compare, describe_mean, name_pictures
from pudica.analysis.attacks.moments import as_disguised, explain_no_disguise
from pudica.analysis.views.releases import Target

KNOWN = 32
"""Pairs of each key."""
LEFT_OUT = 8
PENALTIES = tuple(10.0**n for n in range(-3, 5))
FLAT = 1e-12

Array = NDArray[np.float64]
Fit = Callable[[Array, Array, Array], Array]


class KnownPairs(Attack):
    """Learns a linear inverse of a disguise from pairs of images, and applies it to others."""

    kind = "known-pairs"
    goal = "image"
    assumes = f"{KNOWN} images of an owner known in plain"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        if why := explain_no_disguise(target):
            return why
        few, keys = target.view.count, len(np.unique(as_disguised(target).keys))
        return f"all of {few} images would be known" if few <= KNOWN * keys else ""

    def run(self, target: Target, effort: Effort) -> Outcome:  # noqa: ARG002
        """Learn from the first pairs of each key; all others are attacked."""
        true, seen, keys = target.pixels, target.view.seen[:, 0], as_disguised(target).keys
        drawn, attacked = torch.zeros_like(true), np.ones(len(true), bool)
        for key in np.unique(keys):
            rows = np.flatnonzero(keys == key)
            attacked[rows[:KNOWN]] = False
            if len(rows) > KNOWN:
                drawn[rows] = undo(seen[rows], true[rows[:KNOWN]])
        rows = np.flatnonzero(attacked)
        # Among the others: nobody takes a drawing for an image that is known.
        found: Metrics = compare(drawn[rows], true[rows])
        found |= describe_mean(target.view.own, true)
        pictures = name_pictures(true[rows], {"": drawn[rows]})
        return Outcome({"chance": 1 / len(rows), "releases": 1, **found}, pictures)


def undo(seen: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return images (n, C, H, W) in [0, 1]; the first of them are known in plain."""
    x, y = (part.flatten(1).double().numpy() for part in (seen, known))
    scale = np.where(x.std(0) > FLAT, x.std(0), 1)
    x = (x - x.mean(0)) / scale
    few, count = slice(0, len(y) - LEFT_OUT), len(y)
    tried = slice(len(y) - LEFT_OUT, count)

    def error(fit: Fit) -> float:
        return float(np.square(fit(x[few], y[few], x[tried]) - y[tried]).mean())

    best = min((fit_pixels, fit_together), key=error)
    drawn = best(x[:count], y, x).clip(0, 1)
    return torch.from_numpy(drawn).float().reshape(len(seen), *known.shape[1:])


def fit_pixels(x: Array, y: Array, new: Array) -> Array:
    """Return what least squares for each pixel alone makes of ``new`` (m, d)."""
    centred, wanted = x - x.mean(0), y - y.mean(0)
    spread = np.square(centred).sum(0)
    slope = np.where(spread > FLAT, (centred * wanted).sum(0) / np.maximum(spread, FLAT), 0)
    found: Array = y.mean(0) + slope * (new - x.mean(0))
    return found


def fit_together(x: Array, y: Array, new: Array) -> Array:
    """Return what ridge regression on all pixels makes of ``new`` (m, d)."""
    found: Array = RidgeCV(PENALTIES).fit(x, y).predict(new)
    return found
