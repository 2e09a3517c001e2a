"""An empirical audit: a lower bound on the privacy loss, whatever is claimed."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta

from pudica.clients.shields import Guarantee, Mechanism
from pudica.models.randomness import numpy_generator

COORDINATES = 2_000
QUANTILES = np.linspace(0.001, 0.999, 199)


@dataclass(frozen=True)
class Audit:
    """Result of an audit: what the outputs of a mechanism on two neighbours reveal.

    Attributes
    ----------
    true_rate, false_rate : float
        Bounds on how often the attacker names the first neighbour: at least, if it was the input,
        and at most, if it was not. Both hold together with the confidence.
    ceiling : float
        The largest lower bound on ε that this many outputs can show.
    samples : int
        Outputs drawn for each neighbour.
    claimed, guarantee : Guarantee
        The claim of its paper, and what the mechanism guarantees.
    """

    true_rate: float
    false_rate: float
    ceiling: float
    confidence: float
    samples: int
    claimed: Guarantee
    guarantee: Guarantee

    def lower_bound(self, delta: float) -> float:
        """Return the lower bound on a record's ε for this δ; 0 if nothing was shown."""
        return _epsilon_bound(self.true_rate, self.false_rate, delta)

    def refutes(self, guarantee: Guarantee) -> bool:
        """Return whether a guarantee, read for one record, is refuted."""
        epsilon = guarantee.epsilon
        return epsilon is not None and self.lower_bound(guarantee.delta) > epsilon

    def could_refute(self, guarantee: Guarantee) -> bool:
        """Return whether this many outputs could refute a guarantee."""
        return guarantee.epsilon is not None and self.ceiling > guarantee.epsilon


def audit(
    mechanism: Mechanism, samples: int = 5_000, confidence: float = 0.95, seed: int = 0
) -> Audit:
    """Attack a mechanism with the optimal test, on the most distant neighbours we know.

    Outputs on two batches that differ in one example are distinguished by their likelihood
    ratio, the most powerful test (Neyman and Pearson). Half of the outputs choose a threshold;
    the other half bound the two error rates (Clopper and Pearson), for which
    ``ε ≥ ln((1 − δ − FNR)/FPR)`` must hold. The outputs are those of :meth:`Mechanism.protect`,
    so missing noise is detected.

    Parameters
    ----------
    samples : int
        Outputs per neighbour, at least 4. The bound can't exceed about
        ``ln(samples/7.4)`` at 95 %.
    confidence : float
        Probability, over the noise, that the bound is correct.

    Raises
    ------
    ValueError
        For fewer samples, or for a mechanism without noise, whose outputs reveal everything.
    """
    return judge(mechanism, *draw_log_ratios(mechanism, samples, seed), confidence)


def draw_log_ratios(mechanism: Mechanism, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the log likelihood ratios of outputs on one neighbour, and on the other.

    Each of shape (samples,), in nats: above 0, an output is more likely on the first neighbour.
    Errors as of :func:`audit`.
    """
    if samples < 4:
        raise ValueError(f"an audit needs at least 4 samples, got {samples}")
    if mechanism.is_noiseless:
        raise ValueError("the mechanism adds no noise, there is nothing to audit")
    mechanism = copy.deepcopy(mechanism)  # it may count its batches
    attacker = _Attacker(mechanism)
    one, other = (
        attacker.log_ratios(batch, samples, numpy_generator(seed, "audit", number))
        for number, batch in enumerate(mechanism.neighbours())
    )
    return one, other


def judge(
    mechanism: Mechanism, one: np.ndarray, other: np.ndarray, confidence: float = 0.95
) -> Audit:
    """Return the :func:`audit` of a mechanism from its outputs' log likelihood ratios."""
    samples = len(one)
    guarantee, half, error = mechanism.guarantee(), samples // 2, 1 - confidence
    threshold, mirrored = _choose_threshold(one[:half], other[:half], guarantee.delta)
    rates = _bound_rates(one[half:], other[half:], threshold, mirrored, error)
    trials = samples - half
    best = _clopper_pearson_lower(trials, trials, error / 2)
    ceiling = _epsilon_bound(best, _clopper_pearson_upper(0, trials, error / 2), 0.0)
    return Audit(*rates, ceiling, confidence, samples, mechanism.claimed(), guarantee)


class _Attacker:
    """Knows both neighbours and the mechanism, and computes likelihood ratios of outputs.

    It uses the coordinates that differ most, up to :data:`COORDINATES` of them. A subset reveals
    no more than all coordinates, so bounds remain lower bounds.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        with torch.no_grad():
            one, other = (mechanism.noise_centres(b).flatten() for b in mechanism.neighbours())
        order = (one - other).abs().argsort(descending=True, stable=True)[:COORDINATES]
        self.coordinates = order[(one != other)[order]]
        self.one, self.other = one[self.coordinates].double(), other[self.coordinates].double()

    def log_ratios(
        self, batch: torch.Tensor, samples: int, randomness: np.random.Generator
    ) -> np.ndarray:
        """Return ``ln p(o | one) − ln p(o | other)`` for outputs o on a batch."""
        return np.array([self._log_ratio(batch, randomness) for _ in range(samples)])

    @torch.no_grad()
    def _log_ratio(self, batch: torch.Tensor, randomness: np.random.Generator) -> float:
        output = self.mechanism.protect(batch, randomness)[0].flatten()[self.coordinates].double()
        one, other, scale = output - self.one, output - self.other, self.mechanism.scale
        if self.mechanism.kind == "laplace":
            return float((other.abs() - one.abs()).sum()) / scale
        return float((other.square() - one.square()).sum()) / (2 * scale**2)


def _choose_threshold(one: np.ndarray, other: np.ndarray, delta: float) -> tuple[float, bool]:
    """Choose the threshold with the largest bound, and whether it is mirrored."""
    candidates = np.unique(np.quantile(np.concatenate([one, other]), QUANTILES))

    def bound(choice: tuple[float, bool]) -> float:
        threshold, mirrored = choice
        return _epsilon_bound(*_bound_rates(one, other, threshold, mirrored, 0.05), delta)

    return max(((float(t), side) for t in candidates for side in (False, True)), key=bound)


def _bound_rates(
    one: np.ndarray, other: np.ndarray, threshold: float, mirrored: bool, error: float
) -> tuple[float, float]:
    """Return a lower bound on the true and an upper bound on the false positive rate.

    Each fails with half of the error, so both hold with confidence ``1 − error``. If mirrored,
    the attacker tests for the second neighbour.
    """
    if mirrored:
        one, other, threshold = -other, -one, -threshold
    lower = _clopper_pearson_lower(int(np.sum(one > threshold)), len(one), error / 2)
    return lower, _clopper_pearson_upper(int(np.sum(other > threshold)), len(other), error / 2)


def _epsilon_bound(true_rate: float, false_rate: float, delta: float) -> float:
    """Return the smallest ε with ``true_rate ≤ e^ε·false_rate + δ``."""
    seen = true_rate - delta
    return math.log(seen / false_rate) if seen > false_rate else 0.0


def _clopper_pearson_lower(successes: int, trials: int, error: float) -> float:
    """Return the lower end of a one-sided Clopper-Pearson interval."""
    if not successes:
        return 0.0
    return float(beta.ppf(error, successes, trials - successes + 1))


def _clopper_pearson_upper(successes: int, trials: int, error: float) -> float:
    """Return the upper end of a one-sided Clopper-Pearson interval."""
    if successes == trials:
        return 1.0
    return float(beta.ppf(1 - error, successes + 1, trials - successes))
