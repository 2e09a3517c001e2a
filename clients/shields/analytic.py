"""How Gaussian noise is calibrated: the exact (ε, δ) of the mechanism (Balle and Wang 2018)."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def analytic_sigma(epsilon: float, delta: float) -> float:
    """Return the least σ of Gaussian noise on a sensitivity of 1."""
    # Imported late: it takes a second, which only its users should pay.
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))


@cache
def analytic_epsilon(sigma: float, delta: float) -> float:
    """Return the ε of Gaussian noise of σ on a sensitivity of 1."""
    from dp_accounting import get_epsilon_gaussian

    # It looks for an ε from above, where δ is 0 and its logarithm is rightly minus infinity.
    with np.errstate(divide="ignore"):
        return float(get_epsilon_gaussian(sigma, delta))
