"""An empirical audit: how much privacy is certainly lost, whatever is claimed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta

from clients.shields import Guarantee, Mechanism
from clients.shields.base import draw
from models.randomness import numpy_generator

VALUES_AT_ONCE = 4_000_000
COORDINATES = 2_000
QUANTILES = np.linspace(0.001, 0.999, 199)


@dataclass(frozen=True)
class Audit:
    """What the outputs of a mechanism on two neighbours gave away.

    Attributes
    ----------
    lower_bound : float
        ε of a record is at least this, with the confidence below; 0 if nothing was shown.
    confidence : float
    samples : int
        Outputs drawn of each neighbour.
    claimed, held : Guarantee
        What the mechanism says of itself.
    """

    lower_bound: float
    confidence: float
    samples: int
    claimed: Guarantee
    held: Guarantee

    def refutes(self, guarantee: Guarantee) -> bool:
        """Tell whether a guarantee, read for a record, is wrong."""
        return guarantee.epsilon is not None and self.lower_bound > guarantee.epsilon


def audit(
    mechanism: Mechanism, samples: int = 20_000, confidence: float = 0.95, seed: int = 0
) -> Audit:
    """Attack a mechanism with the best test there is, on neighbours as far apart as we know how.

    Outputs on two batches that differ in one example are told apart by their likelihood
    ratio, which no other test can beat (Neyman and Pearson). On half of the outputs a
    threshold is chosen; on the other half the two error rates are bounded (Clopper and
    Pearson), and ``ε ≥ ln((1 − δ − FNR)/FPR)`` must hold of them.

    Parameters
    ----------
    samples : int
        Outputs of each neighbour, at least 4. The bound can't exceed about
        ``ln(samples/7.4)`` at 95 %.
    confidence : float
        Of the bound being right, over the draws of the noise.
    """
    with torch.no_grad():
        one, other = (mechanism.bounded(batch).double() for batch in mechanism.neighbours())
    apart = _farthest(one - other)
    # The ratio of an output o is a function of o − one, or of o − other.
    under_one = _log_ratios(mechanism, apart, samples, numpy_generator(seed, "audit", 1))
    under_other = -_log_ratios(mechanism, -apart, samples, numpy_generator(seed, "audit", 2))
    delta = mechanism.held().delta
    half = samples // 2
    threshold, mirrored = _best_threshold(under_one[:half], under_other[:half], delta)
    bound = _bound(under_one[half:], under_other[half:], threshold, mirrored, delta, 1 - confidence)
    return Audit(bound, confidence, samples, mechanism.claimed(), mechanism.held())


def _farthest(difference: torch.Tensor) -> torch.Tensor:
    """Return the largest differences, up to :data:`COORDINATES` of them, without zeros.

    Whoever looks at a part of an output can learn no more than from all of it, so the bound
    stays a lower one.
    """
    flat = difference.flatten()
    flat = flat[flat.abs().argsort(descending=True, stable=True)[:COORDINATES]]
    return flat[flat != 0]


def _log_ratios(
    mechanism: Mechanism, apart: torch.Tensor, samples: int, randomness: np.random.Generator
) -> np.ndarray:
    """Return ln p(o | one) − ln p(o | other) of outputs ``o = one + noise``."""
    scale, results = mechanism.scale, []
    at_once = max(1, VALUES_AT_ONCE // max(1, len(apart)))
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        noise = draw(mechanism.kind, (rows, len(apart)), scale, randomness).double()
        if mechanism.kind == "laplace":
            ratio = ((noise + apart).abs() - noise.abs()) / scale
        else:
            ratio = ((noise + apart).square() - noise.square()) / (2 * scale**2)
        results.append(ratio.sum(1).numpy())
    return np.concatenate(results)


def _best_threshold(
    under_one: np.ndarray, under_other: np.ndarray, delta: float
) -> tuple[float, bool]:
    """Return the threshold that promises the largest bound, and on which side of it."""
    candidates = np.unique(np.quantile(np.concatenate([under_one, under_other]), QUANTILES))
    promised = [
        (
            _bound(under_one, under_other, float(threshold), mirrored, delta, 0.05),
            threshold,
            mirrored,
        )
        for threshold in candidates
        for mirrored in (False, True)
    ]
    _, threshold, mirrored = max(promised, key=lambda each: each[0])
    return float(threshold), mirrored


def _bound(
    under_one: np.ndarray,
    under_other: np.ndarray,
    threshold: float,
    mirrored: bool,
    delta: float,
    error: float,
) -> float:
    """Return the lower bound of ε from how often each side passes the threshold.

    Each rate is bounded with half of the error, so both hold with confidence ``1 − error``.
    """
    right, wrong = np.sum(under_one > threshold), np.sum(under_other > threshold)
    if mirrored:
        right, wrong = np.sum(under_other <= threshold), np.sum(under_one <= threshold)
    true_rate = _lower(int(right), len(under_one), error / 2)
    false_rate = _upper(int(wrong), len(under_other), error / 2)
    return math.log((true_rate - delta) / false_rate) if true_rate - delta > false_rate else 0.0


def _lower(successes: int, trials: int, error: float) -> float:
    """Return the lower end of a one-sided Clopper-Pearson interval."""
    if not successes:
        return 0.0
    return float(beta.ppf(error, successes, trials - successes + 1))


def _upper(successes: int, trials: int, error: float) -> float:
    """Return the upper end of a one-sided Clopper-Pearson interval."""
    if successes == trials:
        return 1.0
    return float(beta.ppf(1 - error, successes + 1, trials - successes))
