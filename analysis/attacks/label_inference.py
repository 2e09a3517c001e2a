"""Label inference: which classes an owner has, read off the last layer of its updates.

The gradient of the last layer's bias is the mean of p − y over a batch, softmax outputs minus
labels: Zhao et al. 2020, "iDLG: improved deep leakage from gradients", Eq. (3), read one label off
its sign. For many images p has to be estimated: Wainakh et al. 2022, "User-level label leakage
from gradients in federated learning", do so from dummy images, as is done here.
"""

from __future__ import annotations

import numpy as np
import torch

from pudica.analysis.attacks.base import CLEAR, Attack, Effort, Metrics, Outcome, balance_successes
from pudica.analysis.views.gradients import Gradient, GradientsView, GradientTarget
from pudica.analysis.views.updates import Update
from pudica.models import packing
from pudica.models.randomness import derive, temporary_seed, torch_generator

DUMMIES = 256
"""Images of noise on which a model's mean output is estimated."""


class ClassInference(Attack):
    """Tells which classes are among an owner's images.

    ``success`` is the balanced accuracy of "this class is there" over all owners and classes: the
    mean of how often classes that are there are found, and of how often the others are not taken
    to be there. Guessing reaches one half. A class is taken to be there if its share is above half
    of what it would be if all had the same. ``correlation`` is that of shares with their estimates,
    0 by guessing.
    """

    kind = "label-inference"
    goal = "attribute"
    target = GradientTarget

    def _explain_unfit(self, target: GradientTarget) -> str:
        view = target.view
        if any(gradient.labels is not None for gradient in view.seen):
            return "labels cross in the clear, beside the gradients"
        *_, last = view.model.parameters()
        if tuple(last.shape) != (view.classes,):
            return "the model's last layer has no bias"
        if all(len(np.unique(target.labels[own])) == view.classes for own in target.behind):
            return "each node has images of every class: there is nothing to tell"
        return ""

    def run(self, target: GradientTarget, effort: Effort) -> Outcome:
        """Read the first update of each node, all that were noted, and those of single images."""
        nodes = np.array([gradient.node for gradient in target.view.seen])
        _, firsts, counts = np.unique(nodes, return_index=True, return_counts=True)
        metrics: Metrics = {"chance": 0.5, "releases": int(counts.max())}
        targets = {"": target, CLEAR: target.in_the_clear()}
        if metrics["releases"] > 1:
            targets["_once"] = target.keep(firsts.tolist())
        for suffix, each in targets.items():
            by = np.arange(len(each.behind)) if suffix == CLEAR else None
            rates = score_shares(*infer_shares(each, effort.seed, by))
            metrics |= {f"{name}{suffix}": value for name, value in rates.items()}
        return Outcome(metrics, {})


def infer_shares(
    target: GradientTarget, seed: int, nodes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimated share of each class of each node, and the true one: (nodes, classes).

    Parameters
    ----------
    nodes : int64 ndarray, optional
        Whose each gradient is taken to be; estimates of one node are averaged.
    """
    view = target.view
    if nodes is None:
        nodes = np.array([gradient.node for gradient in view.seen])
    found = np.stack([estimate_shares(view, gradient, seed) for gradient in view.seen])
    counts = [np.bincount(target.labels[own], minlength=view.classes) for own in target.behind]
    true = np.stack([count / count.sum() for count in counts])
    each = [nodes == node for node in np.unique(nodes)]
    guessed, right = (np.stack([of[own].mean(0) for own in each]) for of in (found, true))
    return guessed, right


def score_shares(guessed: np.ndarray, true: np.ndarray) -> Metrics:
    """Return how well shares (nodes, classes) are guessed; see :class:`ClassInference`."""
    classes = true.shape[1]
    there, seems = (true > 0).ravel(), (guessed > 1 / (2 * classes)).ravel()
    correlation = np.corrcoef(guessed.ravel(), true.ravel())[0, 1]
    return {**balance_successes(seems, there), "correlation": float(correlation)}


def estimate_shares(view: GradientsView, gradient: Gradient, seed: int) -> np.ndarray:
    """Return the estimated share of each class in the images behind a gradient, (classes,)."""
    slope = gradient.values[-view.classes :].numpy()
    shares = np.clip(estimate_outputs(view, gradient, seed) - slope, 0, None)
    total = shares.sum()
    return shares / total if total > 0 else np.full(view.classes, 1 / view.classes)


@torch.no_grad()
def estimate_outputs(view: GradientsView, gradient: Gradient, seed: int) -> np.ndarray:
    """Return a model's estimated mean softmax outputs over the steps of an update, (classes,).

    The first step sees the model that was sent. All others are taken to see the one that came
    back: at a high rate a model has soon learnt which classes there are.
    """
    steps = gradient.steps if isinstance(gradient, Update) else 1
    outputs = _try_model(view, gradient.state, seed)
    if steps > 1:
        assert isinstance(gradient, Update)
        after = _try_model(view, gradient.returned, seed)
        outputs = (outputs + (steps - 1) * after) / steps
    return outputs.numpy()


def _try_model(view: GradientsView, state: torch.Tensor, seed: int) -> torch.Tensor:
    # Normalised images have mean 0 and variance 1, as the noise has.
    noise = torch.randn(DUMMIES, *view.shape, generator=torch_generator(seed, "dummies"))
    packing.unpack(state.to(view.device.device), view.tensors())
    view.model.train(not view.single)
    with temporary_seed(derive(seed, "random layers")):
        logits = view.device.forward(view.model, view.device.move_batch(noise))
    return logits.softmax(1).mean(0).cpu()


def infer_labels(view: GradientsView, gradient: Gradient, seed: int) -> torch.Tensor:
    """Return labels, int64 (B,), in estimated shares, rounded by the largest remainders."""
    wanted = estimate_shares(view, gradient, seed) * gradient.count
    counts = np.floor(wanted).astype(np.int64)
    rest = np.argsort(counts - wanted, kind="stable")[: gradient.count - counts.sum()]
    counts[rest] += 1
    return torch.from_numpy(np.repeat(np.arange(view.classes), counts))
