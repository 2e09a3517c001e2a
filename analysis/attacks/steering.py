"""Hijacking as an attack on a run: a cloud steers a device's front, then draws its images."""

from __future__ import annotations

import math

import numpy as np
import torch

from pudica.analysis.attacks.base import CLEAR, Attack, Effort, Metrics, Outcome
from pudica.analysis.attacks.hijacking import FeatureSpaceHijacking
from pudica.analysis.attacks.inversion import compare, describe_mean, name_pictures
from pudica.analysis.attacks.learning import explain_few
from pudica.analysis.views.active import ActiveTarget, SteeredDevice
from pudica.analysis.views.shielded import draws_noise
from pudica.clients.data import ImageSet
from pudica.models.randomness import derive, numpy_generator

EPOCHS = 3
"""Of steering, for each epoch of effort."""
LEAST_TURNS = 250
"""Gradients at the cut, however few batches an epoch has: so many steer a front of digits."""
RELEASES = 16
"""Of each image, whose mean is drawn, where there is noise."""
MOST_OWN = 10_000
"""Own images that the pilot learns from."""


class Hijacking(Attack):
    """Steers the front of a device of the case, and draws its images from what it sends.

    The mathematics are those of :class:`.FeatureSpaceHijacking`. The device is real, and gets
    nothing but messages of the protocol. It is attacked from the beginning of its training: fronts
    of the device and of the pilot are drawn anew. Labels, which cross, are known to the attack;
    what they alone are worth are the measurements that end with ``_of_the_class``.
    """

    kind = "hijacking"
    goal = "image"
    assumes = "the cloud steers the fronts"
    target = ActiveTarget

    def _explain_unfit(self, target: ActiveTarget) -> str:
        if target.assignment.fronts == "frozen":
            return "a frozen front is not steered"
        if target.assignment.budget:
            return "a budget limits how often a device answers"
        if not any(True for _ in target.make_front(0).layers.parameters()):
            return "the front has nothing that learns"
        return explain_few(target.own)

    def run(self, target: ActiveTarget, effort: Effort) -> Outcome:
        """Draw images from one release, from the mean of several, and without the shield."""
        images, own = target.images, _choose_own(target)
        chosen = numpy_generator(effort.seed, "attacked").permutation(len(images))[: effort.images]
        true = images.pixels(chosen)
        with target.compute.use_threads():
            drawn, turns = hijack(target, own, chosen, effort)
            if target.assignment.shield.name == "none":
                clear = drawn[""]
            else:
                clear = hijack(target.in_the_clear(), own, chosen, effort)[0][""]
        drawn[CLEAR] = clear
        metrics: Metrics = {
            "chance": 1 / len(true),
            "releases": RELEASES if "_once" in drawn else 1,
            "turns": turns,
            **describe_mean(own, true),
        }
        drawn["_of_the_class"] = _draw_class_means(own, images.labels[chosen])
        for suffix, each in drawn.items():
            metrics |= {f"{name}{suffix}": value for name, value in compare(each, true).items()}
        drawn.pop("_of_the_class")
        return Outcome(metrics, name_pictures(true, drawn))


def hijack(
    target: ActiveTarget, own: ImageSet, chosen: np.ndarray, effort: Effort
) -> tuple[dict[str, torch.Tensor], int]:
    """Steer a device of a case, and draw some of its images.

    Parameters
    ----------
    own : ImageSet
        The adversary's.
    chosen : int64 ndarray of shape (n,)
        Which of the device's training images.

    Returns
    -------
    drawn : dict of str to Tensor of shape (n, C, H, W)
        In [0, 1]: from one release (``_once``) and from :data:`RELEASES` (empty), where there is
        noise; else from one (empty).
    turns : int
        How many gradients the device was sent.
    """
    pilot = target.make_front(derive(effort.seed, "pilot"))
    attacker = FeatureSpaceHijacking(own, pilot, effort.seed)
    noisy = draws_noise(pilot.shield)
    with target.join(target.make_front(derive(effort.seed, "front")), effort.seed) as device:
        epochs = count_epochs(device, effort)
        for _ in range(epochs):
            device.steer_epoch(attacker.gradient)
        wanted = {"_once": 1, "": RELEASES} if noisy else {"": 1}
        drawn = {
            suffix: attacker.rebuild(device.release_mean(count, chosen), count)
            for suffix, count in wanted.items()
        }
    return drawn, epochs * device.steps


def count_epochs(device: SteeredDevice, effort: Effort) -> int:
    """Return the epochs of steering: :data:`EPOCHS` for each of effort, or as turns need."""
    return max(EPOCHS * effort.epochs, math.ceil(LEAST_TURNS / device.steps))


def _choose_own(target: ActiveTarget) -> ImageSet:
    return target.own.subset(slice(0, MOST_OWN))


def _draw_class_means(own: ImageSet, labels: np.ndarray) -> torch.Tensor:
    """Return for each label (n,) the mean of own images of the class, (n, C, H, W)."""
    pixels, known = own.pixels(slice(None)), torch.from_numpy(own.labels)
    means = {label: _mean(pixels[known == label], pixels) for label in np.unique(labels)}
    return torch.stack([means[label] for label in labels])


def _mean(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the mean of images; of others, if there are none."""
    return (images if len(images) else others).mean(0)
