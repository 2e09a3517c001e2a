"""White-box inversion: images whose release is the one that was seen, and that look like images.

The adversary descends from a blind guess, the mean of its own images, on the distance of the
releases to those that it saw, and on the total variation (Mahendran and Vedaldi 2015; for split
networks He, Zhang and Lee 2019, "Model inversion attacks against collaborative inference"). Where
noise is all that protects, this is denoising.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pudica.analysis.attacks.base import CLEAR, Attack, Effort, Metrics, Outcome
from pudica.analysis.attacks.inversion import MEAN, compare, describe_mean, name_pictures
from pudica.analysis.attacks.learning import LEAST, explain_few
from pudica.analysis.attacks.matching import KEYED
from pudica.analysis.views.releases import ReleasesView, Target
from pudica.models.randomness import numpy_generator
from pudica.models.similarity import total_variation

ATTACKED = 32
"""Images, at most: each takes hundreds of passes through the fronts."""
STEPS = 25
"""Of the descent, for each epoch of effort."""
LEARNING_RATE = 0.1
WEIGHTS = (0.001, 0.01, 0.1, 1.0)
"""Of the total variation; the best is found on images of the adversary's own."""
TRIED = 16


class TotalVariationInversion(Attack):
    """Descends to images that explain what crossed, through fronts that the adversary knows."""

    kind = "total-variation"
    goal = "image"
    target = Target

    def _explain_unfit(self, target: Target) -> str:
        return KEYED if target.view.is_keyed else explain_few(target.view.own)

    def run(self, target: Target, effort: Effort) -> Outcome:
        """Invert the last release of some images, all of them, and all without noise."""
        true, steps = target.pixels, STEPS * effort.epochs
        few = first_images(target, ATTACKED)
        metrics: Metrics = {"chance": 1 / len(true), "releases": target.view.releases}
        targets = {"": few, CLEAR: few.in_the_clear(effort.seed)}
        if few.view.releases > 1:
            targets["_once"] = few.last(1)
        found: dict[str, torch.Tensor] = {}
        for suffix, each in targets.items():
            weight = choose_weight(each.view, steps, effort.seed)
            drawn = found[suffix] = descend(each.view, weight, steps)
            metrics |= {f"{name}{suffix}": value for name, value in compare(drawn, true).items()}
        metrics |= describe_mean(few.view.own, few.pixels)
        return Outcome(metrics, name_pictures(true, found))


def first_images(target: Target, count: int) -> Target:
    """Return the same target with the first images only."""
    view = target.view
    seen, nodes = view.seen[:count], view.nodes[:count]
    return Target(replace(view, seen=seen, nodes=nodes), target.images.subset(slice(0, count)))


def choose_weight(view: ReleasesView, steps: int, seed: int) -> float:
    """Return the weight of the total variation that draws the adversary's own images best."""
    chosen = slice(LEAST - TRIED, LEAST)
    node = int(view.nodes[0])
    true = view.own.pixels(chosen)
    values = view.compute(view.own, chosen, seed, node)
    sent = view.protect(values, numpy_generator(seed, "total variation"))
    trial = replace(view, seen=sent, nodes=np.full(len(sent), node))

    def error(weight: float) -> float:
        return float((descend(trial, weight, steps) - true).square().mean())

    return min(WEIGHTS, key=error)


def descend(view: ReleasesView, weight: float, steps: int) -> torch.Tensor:
    """Return the images that explain a view best: (n, C, H, W) in [0, 1].

    The mean squared distance of releases, each value relative to its noise's variance, plus
    ``weight`` times the mean absolute difference of neighbouring pixels; Adam on logits of pixels.
    """
    blind = view.own.pixels(slice(0, MEAN)).mean(0)
    found = torch.empty(view.count, *blind.shape)
    for node in np.unique(view.nodes):
        own = np.flatnonzero(view.nodes == node)
        found[own] = _descend(view, int(node), view.seen[own], blind, weight, steps)
    return found


def _descend(
    view: ReleasesView,
    node: int,
    seen: torch.Tensor,
    blind: torch.Tensor,
    weight: float,
    steps: int,
) -> torch.Tensor:
    release, seen = view.function_of(node), view.device.move_batch(seen)
    trust = 1 / torch.as_tensor(view.variance(), dtype=torch.float32).clamp_min(1e-6)
    trust = view.device.move_batch((trust / trust.mean()).expand(view.shape))
    spread = seen.var().clamp_min(1e-12)
    start = torch.logit(blind.clamp(0.02, 0.98)).expand(len(seen), *blind.shape)
    logits = view.device.move_batch(start.contiguous()).detach().requires_grad_()
    optimizer = torch.optim.Adam([logits], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        images = logits.sigmoid()
        apart = (trust * (release(images) - seen).square()).mean() / spread
        optimizer.zero_grad()
        (apart + weight * total_variation(images)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return logits.detach().sigmoid().cpu()
