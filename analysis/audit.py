"""An empirical audit: how much privacy is certainly lost, whatever is claimed."""

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
    """What the outputs of a mechanism on two neighbours gave away.

    Attributes
    ----------
    true_rate, false_rate : float
        How often the attacker names the first neighbour, at least, when it is there, and at
        most, when it is not; both at once with the confidence.
    ceiling : float
        The largest lower bound on ε that as many outputs could have shown.
    confidence : float
    samples : int
        Outputs drawn of each neighbour.
    claimed, held : Guarantee
        What the mechanism says of itself.
    """

    true_rate: float
    false_rate: float
    ceiling: float
    confidence: float
    samples: int
    claimed: Guarantee
    held: Guarantee

    def lower_bound(self, delta: float) -> float:
        """Return what ε of a record must at least be for this δ; 0 if nothing was shown."""
        return _bound(self.true_rate, self.false_rate, delta)

    def refutes(self, guarantee: Guarantee) -> bool:
        """Tell whether a guarantee, read for a record, is wrong."""
        epsilon = guarantee.epsilon
        return epsilon is not None and self.lower_bound(guarantee.delta) > epsilon

    def could_refute(self, guarantee: Guarantee) -> bool:
        """Tell whether so many outputs could have shown a guarantee to be wrong."""
        return guarantee.epsilon is not None and self.ceiling > guarantee.epsilon


def audit(
    mechanism: Mechanism, samples: int = 5_000, confidence: float = 0.95, seed: int = 0
) -> Audit:
    """Attack a mechanism with the best test there is, on neighbours as far apart as we know how.

    Outputs on two batches that differ in one example are told apart by their likelihood
    ratio, which no other test can beat (Neyman and Pearson). On half of the outputs a
    threshold is chosen; on the other half the two error rates are bounded (Clopper and
    Pearson), and ``ε ≥ ln((1 − δ − FNR)/FPR)`` must hold of them. The outputs are those of
    :meth:`Mechanism.protect`: noise that is missing there is found.

    Parameters
    ----------
    samples : int
        Outputs of each neighbour, at least 4. The bound can't exceed about
        ``ln(samples/7.4)`` at 95 %.
    confidence : float
        Of the bound being right, over the draws of the noise.

    Raises
    ------
    ValueError
        For fewer samples than that, or a mechanism without noise: its outputs tell all.
    """
    if samples < 4:
        raise ValueError(f"an audit needs at least 4 samples, got {samples}")
    if mechanism.is_noiseless:
        raise ValueError("the mechanism adds no noise, there is nothing to audit")
    mechanism = copy.deepcopy(mechanism)  # which may count the batches it sees
    attacker = Attacker(mechanism)
    one, other = (
        attacker.ratios(batch, samples, numpy_generator(seed, "audit", number))
        for number, batch in enumerate(mechanism.neighbours())
    )
    held, half, error = mechanism.guarantee(), samples // 2, 1 - confidence
    threshold, mirrored = _best_threshold(one[:half], other[:half], held.delta)
    true_rate, false_rate = _rates(one[half:], other[half:], threshold, mirrored, error)
    trials = samples - half
    return Audit(
        true_rate,
        false_rate,
        _bound(_lower(trials, trials, error / 2), _upper(0, trials, error / 2), 0.0),
        confidence,
        samples,
        mechanism.claimed(),
        held,
    )


class Attacker:
    """Knows both neighbours and the mechanism, and weighs an output.

    It looks at the coordinates that differ most, up to :data:`COORDINATES` of them: whoever
    looks at a part can learn no more than from the whole, so bounds stay lower ones.

    Parameters
    ----------
    mechanism : Mechanism
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        with torch.no_grad():
            one, other = (mechanism.noise_centres(b).flatten() for b in mechanism.neighbours())
        order = (one - other).abs().argsort(descending=True, stable=True)[:COORDINATES]
        self.places = order[(one != other)[order]]
        self.one, self.other = one[self.places].double(), other[self.places].double()

    def ratios(
        self, batch: torch.Tensor, samples: int, randomness: np.random.Generator
    ) -> np.ndarray:
        """Return ``ln p(o | one) − ln p(o | other)`` of outputs o on a batch."""
        return np.array([self._ratio(batch, randomness) for _ in range(samples)])

    @torch.no_grad()
    def _ratio(self, batch: torch.Tensor, randomness: np.random.Generator) -> float:
        output = self.mechanism.protect(batch, randomness)[0].flatten()[self.places].double()
        one, other, scale = output - self.one, output - self.other, self.mechanism.scale
        if self.mechanism.kind == "laplace":
            return float((other.abs() - one.abs()).sum()) / scale
        return float((other.square() - one.square()).sum()) / (2 * scale**2)


def _best_threshold(one: np.ndarray, other: np.ndarray, delta: float) -> tuple[float, bool]:
    """Return the threshold that promises the largest bound, and on which side of it."""
    candidates = np.unique(np.quantile(np.concatenate([one, other]), QUANTILES))

    def promise(choice: tuple[float, bool]) -> float:
        threshold, mirrored = choice
        return _bound(*_rates(one, other, threshold, mirrored, 0.05), delta)

    return max(((float(t), side) for t in candidates for side in (False, True)), key=promise)


def _rates(
    one: np.ndarray, other: np.ndarray, threshold: float, mirrored: bool, error: float
) -> tuple[float, float]:
    """Return a lower bound of the true and an upper one of the false positive rate.

    Each fails with half of the error, so both hold with confidence ``1 − error``. Mirrored,
    the attacker looks out for the second neighbour.
    """
    if mirrored:
        one, other, threshold = -other, -one, -threshold
    right, wrong = int(np.sum(one > threshold)), int(np.sum(other > threshold))
    return _lower(right, len(one), error / 2), _upper(wrong, len(other), error / 2)


def _bound(true_rate: float, false_rate: float, delta: float) -> float:
    """Return the least ε of which ``true_rate ≤ e^ε·false_rate + δ``."""
    seen = true_rate - delta
    return math.log(seen / false_rate) if seen > false_rate else 0.0


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
