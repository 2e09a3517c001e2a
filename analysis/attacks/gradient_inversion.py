"""Gradient inversion: images are changed until they give the gradient that crossed.

Zhu et al. 2019, "Deep leakage from gradients", minimise the distance of gradients; here it is done
as Geiping et al. 2020, "Inverting gradients: how easy is it to break privacy in federated
learning?": Eq. (4), with Adam on the signs of its gradient, and their schedule of rates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cosine_similarity

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
from pudica.analysis.attacks.inversion import likeness
from pudica.analysis.attacks.label_inference import infer_labels
from pudica.analysis.views.gradients import Gradient, GradientsView, GradientTarget
from pudica.models.randomness import derive, temporary_seed, torch_generator
from pudica.models.similarity import total_variation

STEPS = 100
"""For each epoch of effort, each gradient and each start."""
STARTS = 2
"""From which images are changed; the best end counts."""
RATE = 0.1
DECAYS = (3 / 8, 5 / 8, 7 / 8)
"""After which shares of the steps the rate falls to a tenth."""
VARIATION = 1e-2
"""Weight of the total variation, the mean difference of neighbouring pixels."""
LARGEST = 128
"""Most images that are drawn together."""
ATTACKED = 128
"""Images, at most, of all gradients, but for a first one of more: each step goes through all."""


class GradientInversion(Attack):
    """Draws the images behind gradients, and looks for the right one of n next to each drawing.

    Whose batch they are from, the adversary knows; not in which order. So each drawing is judged
    by the image of its batch to which it is assigned (the Hungarian algorithm, by squared
    distance). ``chance`` is :func:`bound_chance`. Labels are those that crossed, or what
    :mod:`.label_inference` makes of the gradient. Disguised images are looked for among disguised
    ones: what undoes a disguise is another matter.
    """

    kind = "gradient-inversion"
    goal = "image"
    target = GradientTarget

    def _explain_unfit(self, target: GradientTarget) -> str:
        least = min(gradient.count for gradient in target.view.seen)
        if least > LARGEST:
            return f"each gradient is of {least} images or more; {LARGEST} at most can be drawn"
        return ""

    def run(self, target: GradientTarget, effort: Effort) -> Outcome:
        """Invert the first gradients of different images, and those of single images."""
        chosen, candidates = target.choose(effort.images, effort.seed, LARGEST)
        ends = np.cumsum([gradient.count for gradient in chosen.view.seen])
        chosen = chosen.keep(list(range(max(1, int((ends <= ATTACKED).sum())))))
        sizes = [gradient.count for gradient in chosen.view.seen]
        metrics: Metrics = {
            "releases": 1,
            "gradients": len(sizes),
            "batch": max(sizes),
        }
        pictures = {}
        for suffix, each in {"": chosen, CLEAR: chosen.in_the_clear()}.items():
            drawn = draw_all(each, STEPS * effort.epochs, effort.seed)
            found = judge(each, drawn, candidates) | {"chance": bound_chance(each, candidates)}
            metrics |= {f"{name}{suffix}": value for name, value in found.items()}
            end = ", in the clear" if suffix else ""
            pictures[f"{ORIGINAL}{end}"] = each.pixels(drawn.positions)
            pictures[f"{DRAWN}{end}"] = drawn.images
        metrics |= describe_blind(chosen)
        return Outcome(metrics, {name: each[:SHOWN].numpy() for name, each in pictures.items()})


class Drawn(NamedTuple):
    """What was drawn from some gradients.

    Attributes
    ----------
    images : Tensor of shape (m, C, H, W)
        In [0, 1].
    positions : int64 ndarray of shape (m,)
        Of the images that they are assigned to.
    distance : float
        Between the gradients that drawings give and those that crossed, on average; see
        :class:`Inverted`.
    """

    images: torch.Tensor
    positions: np.ndarray
    distance: float


def judge(target: GradientTarget, drawn: Drawn, candidates: np.ndarray) -> Metrics:
    """Return how often the nearest of n candidates is the right image, and the likeness to it."""
    pool = target.pixels(candidates).flatten(1)
    nearest = torch.cdist(drawn.images.flatten(1), pool).argmin(1).numpy()
    rates = count_successes(candidates[nearest] == drawn.positions)
    alike = likeness(drawn.images, target.pixels(drawn.positions))
    return {**rates, **alike, "distance": drawn.distance}


def bound_chance(target: GradientTarget, candidates: np.ndarray) -> float:
    """Return how often at most the right image is the nearest by chance, if labels are known.

    A drawing that shows its class and nothing else has some image of the class for the nearest.
    It counts only if that one is of the batch: k of the class's m candidates are.
    """
    known = np.bincount(target.labels[candidates], minlength=target.view.classes)
    every = []
    for own in target.behind:
        labels = target.labels[own]
        counts = np.bincount(labels, minlength=target.view.classes)
        every.append(counts[labels] / known[labels])
    return float(np.concatenate(every).mean())


def describe_blind(target: GradientTarget) -> Metrics:
    """Return the likeness of a guess without any gradient to the images behind them."""
    true = target.pixels(np.concatenate(target.behind))
    found = likeness(target.view.blind.expand_as(true), true)
    return {f"{name}_of_the_mean": value for name, value in found.items()}


def draw_all(target: GradientTarget, steps: int, seed: int) -> Drawn:
    """Invert all gradients, and assign each drawing to an image of its batch."""
    drawn, positions, distances = [], [], []
    for gradient, own in zip(target.view.seen, target.behind, strict=True):
        labels = gradient.labels
        if labels is None:
            labels = infer_labels(target.view, gradient, seed)
        _, distance, images = invert_gradient(target.view, gradient, labels, steps, seed)
        costs = torch.cdist(images.flatten(1), target.pixels(own).flatten(1)).square()
        rows, columns = linear_sum_assignment(costs.numpy())
        drawn.append(images[torch.from_numpy(rows)])
        positions.append(own[columns])
        distances.append(distance)
    return Drawn(torch.cat(drawn), np.concatenate(positions), float(np.mean(distances)))


class Inverted(NamedTuple):
    """Images that give nearly the gradient that crossed.

    Attributes
    ----------
    loss : float
        The distance, and the images' total variation as far as it counts.
    distance : float
        1 minus the cosine of the angle between the gradients.
    images : Tensor of shape (B, C, H, W)
        In [0, 1], in no order.
    """

    loss: float
    distance: float
    images: torch.Tensor


def invert_gradient(
    view: GradientsView, gradient: Gradient, labels: torch.Tensor, steps: int, seed: int
) -> Inverted:
    """Return the best images that any start leads to.

    Parameters
    ----------
    labels : int64 Tensor of shape (B,)
    steps : int
        From each start.
    """
    view.load(gradient)
    shape = (gradient.count, *view.shape)
    starts = [torch.rand(shape, generator=torch_generator(seed, "start", i)) for i in range(STARTS)]
    with temporary_seed(derive(seed, "random layers")):
        found = [_descend(view, gradient, labels, steps, start) for start in starts]
    return min(found, key=lambda each: each.loss)


def _descend(
    view: GradientsView, gradient: Gradient, labels: torch.Tensor, steps: int, start: torch.Tensor
) -> Inverted:
    """Return the best images on the way from a start."""
    device = view.device.device
    wanted, labels = gradient.values.to(device), labels.to(device)
    x = start.to(device).requires_grad_()
    optimizer = torch.optim.Adam([x], RATE)
    milestones = [round(share * steps) for share in DECAYS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    best = Inverted(float("inf"), 1.0, start)
    for _ in range(steps):
        found = view.compute(gradient, x, labels, differentiable=True)
        distance = 1 - cosine_similarity(found, wanted, dim=0)
        loss = distance + VARIATION * total_variation(x)
        if loss.item() < best.loss:
            best = Inverted(loss.item(), distance.item(), x.detach().clone())
        (slope,) = torch.autograd.grad(loss, [x])
        x.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return best._replace(images=best.images.cpu())
