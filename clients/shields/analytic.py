"""How Gaussian noise is calibrated: the exact (ε, δ) of the mechanism (Balle and Wang 2018)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from pudica.clients.shields.grid import delta_within_slack, slack

MAX_SLACK = 1.0
"""What is proven of it holds up to here; it takes a hundred million releases to get there."""


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


def discrete_sigma(epsilon: float, delta: float, count: int = 1) -> float:
    """Return the least σ with which so many discrete releases of sensitivity 1 keep (ε, δ).

    Raises
    ------
    ValueError
        If ε is so small that it is all needed for what discrete noise differs.
    """
    extra = slack(count, epsilon, delta)
    if extra > min(epsilon / 2, MAX_SLACK):
        raise ValueError(f"epsilon: {epsilon:g} is too small for {count} releases on a grid")
    return math.sqrt(count) * analytic_sigma(epsilon - extra, delta_within_slack(delta, extra))


def discrete_epsilon(sigma: float, delta: float, count: int = 1) -> float:
    """Return the ε of discrete Gaussian noise that tells as much as one of σ on a sensitivity of 1.

    Parameters
    ----------
    count : int
        Of how many releases it is.
    """
    extra = slack(count, analytic_epsilon(sigma, delta), delta)
    if extra > MAX_SLACK:
        return math.inf
    return analytic_epsilon(sigma, delta_within_slack(delta, extra)) + extra
