"""Re-identification: each release is matched to the image that it most likely came from.

No network is trained. The adversary computes what each candidate would send, with the weights that
it knows, and takes the nearest: with normal noise the most likely one. Releases add up.
"""

from __future__ import annotations

import numpy as np
import torch

from pudica.analysis.attacks.base import (
    CLEAR,
    SHOWN,
    Attack,
    Effort,
    Metrics,
    Outcome,
    count_successes,
)
from pudica.analysis.attacks.inversion import name_pictures
from pudica.analysis.views.releases import Target

TOGETHER = 1024
"""Candidates whose releases are computed at a time."""
KEYED = "what crosses depends on a secret key, so that nobody else can compute it"


class CandidateMatching(Attack):
    """Picks, for each release, one of the images that were attacked."""

    kind = "matching"
    goal = "image"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        return KEYED if target.view.is_keyed else ""

    def run(self, target: Target, effort: Effort) -> Outcome:
        """Match releases to images, of the last release alone and of all of them."""
        view = target.view
        metrics: Metrics = {"chance": 1 / view.count, "releases": view.releases}
        targets = {"": target, CLEAR: target.in_the_clear(effort.seed)}
        if view.releases > 1:
            targets["_once"] = target.last(1)
        found = {suffix: match(each) for suffix, each in targets.items()}
        for suffix, picked in found.items():
            rates = count_successes(picked == np.arange(view.count))
            metrics |= {f"{name}{suffix}": value for name, value in rates.items()}
        taken_for = target.pixels[found[""][:SHOWN]]
        return Outcome(metrics, name_pictures(target.pixels, {"": taken_for}))


@torch.no_grad()
def match(target: Target) -> np.ndarray:
    """Return which image each release is taken for, (n,)."""
    view, parts = target.view, target.pixels.split(TOGETHER)
    picked = np.zeros(view.count, np.int64)
    for node in np.unique(view.nodes):
        own, release = np.flatnonzero(view.nodes == node), view.function_of(int(node))
        sent = torch.cat([release(view.device.move_batch(part)).cpu() for part in parts])
        distances = torch.cdist(view.seen[own].flatten(1), sent.flatten(1))
        picked[own] = distances.argmin(1).numpy()
    return picked
