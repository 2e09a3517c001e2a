"""Membership inference: whether an image was a training image of a model.

LiRA, the likelihood ratio attack of Carlini et al. 2022, "Membership inference attacks from first
principles": its offline variant (section VI.C) with a global variance (section VI.A), for few
shadow models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch.nn.functional import cross_entropy

from pudica.analysis.attacks.base import (
    CLEAR,
    CONFIDENCE,
    Attack,
    Effort,
    Metrics,
    Outcome,
    count_successes,
)
from pudica.analysis.views.models import (
    Classifier,
    ModelTarget,
    ModelView,
    NoModel,
    compute_logits,
)
from pudica.clients.data import ImageSet
from pudica.models.randomness import derive, numpy_generator, temporary_seed

FALSE_ALARMS = 0.01
"""The rate of false alarms at which the attack is measured."""
FEWER = 0.001
"""The lower one at which it is measured, too."""
FEWEST = 4
"""Shadow models, at least."""
LEAST = 100
"""Images of the adversary's own, and candidates of each kind, at least: one false alarm."""
SHARE = 0.5
"""Of the adversary's own images, those that a shadow model is trained on."""
LARGEST = 100.0
"""Beyond it confidences, in logits, are cut off: a class may be impossible."""
CONTROLS = FEWEST + 1
"""Models of the positive control: with one alone, a single lucky guess decides."""
BY_HEART = 16
"""Images that each of them knows by heart."""
PASSES, RATE = 300, 3e-3
"""How they are trained: passes at most, and Adam's learning rate."""
KNOWN = 0.05
"""The mean loss at which images count as known by heart."""
RESAMPLES = 1000


class MembershipInference(Attack):
    """Tells training images of a model from others of the same kind.

    ``success`` is the share of training images that are found where 1 % of the others are taken
    for training images.
    """

    kind = "membership"
    goal = "membership"
    target = ModelTarget

    def explain_unfit(self, targets: Sequence[Any]) -> str:
        """Return why the attack applies to none of a case's targets; see :class:`.Attack`."""
        missing = [target.reason for target in targets if isinstance(target, NoModel)]
        return missing[0] if missing else super().explain_unfit(targets)

    def _explain_unfit(self, target: ModelTarget) -> str:
        counts = {
            "of the adversary's own, half of the test part,": len(target.view.own),
            "to attack that were not trained on, the other half, or --images,": int(
                (~target.members).sum()
            ),
            "to attack that were trained on": int(target.members.sum()),
        }
        few = [f"{count} images {what}" for what, count in counts.items() if count < LEAST]
        return f"needs {LEAST} images or more of each kind, there are {few[0]}" if few else ""

    def run(self, target: ModelTarget, effort: Effort) -> Outcome:
        """Score all candidates, and those of models without a shield that know theirs by heart."""
        view, members = target.view, target.members
        shadows = train_shadows(view, max(FEWEST, effort.epochs), effort.seed)
        logits = compute_logits(view.model, view.candidates, view.device)
        right = logits.argmax(1).numpy() == view.candidates.labels
        scores = score(view.model, shadows, view)
        metrics: Metrics = {
            "chance": bound_chance(int((~members).sum()), FALSE_ALARMS),
            "shadow_models": len(shadows),
            "candidates": len(members),
            "accuracy_on_members": float(right[members].mean()),
            "accuracy_on_others": float(right[~members].mean()),
            **measure_scores(scores, members, effort.seed),
        }
        control = measure_control(view, effort.seed)
        metrics |= {f"{name}{CLEAR}": value for name, value in control.items()}
        return Outcome(metrics, {})


# --------------------------------------------------------------------------------- scores


def train_shadows(view: ModelView, count: int, seed: int) -> list[Classifier]:
    """Train shadow models, each on a random part of the adversary's own images."""
    size = max(1, round(SHARE * len(view.own)))
    shadows = []
    for number in range(count):
        own = numpy_generator(seed, "shadow", number).permutation(len(view.own))[:size]
        shadows.append(view.train(view.own.subset(own), derive(seed, "shadow", number)))
    return shadows


def compute_confidence(logits: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Return ``φ = log(p/(1 − p))`` of each image's own class (Eq. (3)), float64 of shape (n,).

    Parameters
    ----------
    logits : Tensor of shape (n, classes)
        From which it is computed without rounding p to 1: ``z_y − log Σ exp z`` of the others.
    labels : int64 ndarray of shape (n,)
    """
    own = torch.from_numpy(labels)[:, None]
    exact = logits.double()
    others = exact.scatter(1, own, -torch.inf).logsumexp(1)
    found = (exact.gather(1, own)[:, 0] - others).nan_to_num(0.0)
    return found.clamp(-LARGEST, LARGEST).numpy()


def score(model: Classifier, shadows: Sequence[Classifier], view: ModelView) -> np.ndarray:
    """Return how much surer a model is of each candidate than models that were not trained on it.

    In standard deviations of the shadow models, ``(φ − μ)/σ``: the larger, the less likely is it
    that the candidate was no training image (Eq. (4), before Φ).

    Returns
    -------
    ndarray of shape (n,)
    """
    images, device = view.candidates, view.device

    def measure(each: Classifier) -> np.ndarray:
        return compute_confidence(compute_logits(each, images, device), images.labels)

    outside = np.stack([measure(shadow) for shadow in shadows])
    deviation = float(np.sqrt(outside.var(0, ddof=1).mean()))
    scores: np.ndarray = (measure(model) - outside.mean(0)) / max(deviation, 1e-12)
    return scores


def find_hits(scores: np.ndarray, others: np.ndarray, rate: float) -> np.ndarray:
    """Return which scores are above the threshold at a rate of false alarms, bool of (n,).

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of training images.
    others : ndarray of shape (m,)
        Of which ``⌊rate·m⌋`` at most may be above it.
    """
    allowed = int(rate * len(others) + 1e-9)
    hits: np.ndarray = scores > np.sort(others)[::-1][allowed]
    return hits


def bound_chance(others: int, rate: float) -> float:
    """Return how often scores that tell nothing are above the threshold of :func:`find_hits`.

    The threshold is one of the others' scores: of m + 1 such scores, k + 1 are at least as large.
    """
    return (int(rate * others + 1e-9) + 1) / (others + 1)


def measure_scores(scores: np.ndarray, members: np.ndarray, seed: int) -> Metrics:
    """Return how well scores (n,) tell members (n,) from others.

    The interval of ``success`` is that of both samples, resampled (percentile bootstrap), or
    Wilson's where that is wider. On scores that tell nothing its lower end is above 1 % in 2.5 %
    of all cases; Wilson's alone, which takes the threshold for known, in 15 to 30 %.
    """
    inside, outside = scores[members], scores[~members]
    rates = count_successes(find_hits(inside, outside, FALSE_ALARMS))
    low, high = _resample(inside, outside, seed)
    return {
        "success": rates["success"],
        "success_low": min(low, rates["success_low"]),
        "success_high": max(high, rates["success_high"]),
        "tpr_at_0_1_percent": float(find_hits(inside, outside, FEWER).mean()),
        "auc": float(mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))),
    }


def _resample(inside: np.ndarray, outside: np.ndarray, seed: int) -> tuple[float, float]:
    draws = numpy_generator(seed, "resampled")

    def draw() -> float:
        scores, others = (draws.choice(each, len(each)) for each in (inside, outside))
        return float(find_hits(scores, others, FALSE_ALARMS).mean())

    ends = (1 - CONFIDENCE) / 2
    low, high = np.quantile([draw() for _ in range(RESAMPLES)], [ends, 1 - ends])
    return float(low), float(high)


# ------------------------------------------------------------------------ positive control


def measure_control(view: ModelView, seed: int) -> Metrics:
    """Return :func:`measure_scores` of models that know some images by heart, taken together.

    Each one's shadow models are the others: they are trained alike, with other labels.
    """
    controls = [memorise(view, derive(seed, "control", number)) for number in range(CONTROLS)]
    scores = []
    for control in controls:
        shadows = [other.view.model for other in controls if other is not control]
        scores.append(score(control.view.model, shadows, control.view))
    members = np.concatenate([control.members for control in controls])
    return measure_scores(np.concatenate(scores), members, seed)


def memorise(view: ModelView, seed: int) -> ModelTarget:
    """Return a model without a shield that knows some of the adversary's own images by heart.

    It has the same architecture, and is trained until it tells these images' random labels, which
    nobody can who has not seen them. Half of the other images come with another random label in
    each pass, so that it is sure of nothing else; candidates are the rest.
    """
    images = view.own.subset(numpy_generator(seed, "order").permutation(len(view.own)))
    draws = numpy_generator(seed, "labels")
    images = replace(images, labels=draws.integers(images.num_classes, size=len(images)))
    known, others = np.split(np.arange(len(images)), [BY_HEART])
    seen, unseen = np.array_split(others, 2)
    model = _learn_by_heart(view, images.subset(known), images.subset(seen), seed)
    candidates = images.subset(np.concatenate([known, unseen]))
    members = np.arange(len(candidates)) < len(known)
    return ModelTarget(replace(view, model=model, candidates=candidates), members)


def _learn_by_heart(view: ModelView, known: ImageSet, seen: ImageSet, seed: int) -> Classifier:
    device, draws = view.device, numpy_generator(seed, "by heart")
    model = device.move_model(view.build(derive(seed, "weights")))
    model.requires_grad_(True).train()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    x, labels = known.batch(slice(None))
    with temporary_seed(derive(seed, "random layers")):
        for _ in range(PASSES):
            others = seen.batch(draws.choice(len(seen), min(len(seen), len(x)), replace=False))[0]
            drawn = torch.from_numpy(draws.integers(known.num_classes, size=len(others)))
            batch = device.move_batch(torch.cat([x, others]))
            wanted = torch.cat([labels, drawn]).to(device.device)
            losses = cross_entropy(device.forward(model, batch), wanted, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if float(losses[: len(x)].detach().mean()) < KNOWN:
                break
    return model.eval()
