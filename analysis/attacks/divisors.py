"""Common divisors: matrix transformations undone exactly, without images of one's own.

``A' = m·A + b`` for every pixel, in whole numbers: differences of disguised images have m as their
common divisor; b is guessed from the darkest and the brightest that a pixel can be.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch

from pudica.analysis.attacks.base import Attack, Effort, Outcome
from pudica.analysis.attacks.inversion import MEAN, compare, describe_mean, name_pictures
from pudica.analysis.attacks.moments import as_disguised, explain_no_disguise
from pudica.analysis.views.dlmt import DisguisedView
from pudica.analysis.views.releases import Target
from pudica.clients.shields.disguises import parse_notation
from pudica.clients.shields.disguises.breaks import (
    Guess,
    guess_offsets,
    invert_affine,
    is_affine,
    recover_factors,
)


class CommonDivisors(Attack):
    """Finds m as a common divisor and guesses b; of two guesses it takes the likelier."""

    kind = "common-divisor"
    goal = "image"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        if why := explain_no_disguise(target):
            return why
        disguise = as_disguised(target).disguise
        assert disguise is not None
        affine = is_affine(parse_notation(disguise))
        return "" if affine else f"{disguise} is no composition of MAT, MMT and Rise"

    def run(self, target: Target, effort: Effort) -> Outcome:  # noqa: ARG002
        """Undo the disguise of all images under one key together."""
        true, drawn = target.pixels, divide(as_disguised(target))
        found = {**compare(drawn, true), **describe_mean(target.view.own, true)}
        return Outcome(
            {"chance": 1 / len(true), "releases": 1, **found}, name_pictures(true, {"": drawn})
        )


def divide(view: DisguisedView) -> torch.Tensor:
    """Return the images (n, C, H, W) in [0, 1] that the likelier guess of b gives."""
    blind = view.own.pixels(slice(0, MEAN)).mean(0)
    drawn = torch.empty_like(view.seen[:, 0])
    for key in np.unique(view.keys):
        rows = np.flatnonzero(view.keys == key)
        each = [_undo(view.received[rows].astype(np.int64), guess) for guess in get_args(Guess)]
        drawn[rows] = min(each, key=lambda images: float((images.mean(0) - blind).square().sum()))
    return drawn


def _undo(disguised: np.ndarray, guess: Guess) -> torch.Tensor:
    m = recover_factors(disguised)
    plain = invert_affine(disguised, m, guess_offsets(disguised, m, guess))
    return torch.from_numpy(plain).float() / 255
