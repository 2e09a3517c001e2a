"""Calibrate Gaussian noise by the mechanism's exact (ε, δ) (Balle and Wang 2018)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from pudica.clients.shields.grid import delta_within_slack, slack

MAX_SLACK = 1.0
"""The proof of :func:`.grid.slack` holds up to here, which takes a hundred million releases."""


@cache
def analytic_sigma(epsilon: float, delta: float) -> float:
    """Return the smallest σ of Gaussian noise that gives (ε, δ) for a sensitivity of 1."""
    # Imported late: it takes a second, which only its users should pay.
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))


@cache
def analytic_epsilon(sigma: float, delta: float) -> float:
    """Return the ε of Gaussian noise with this σ for a sensitivity of 1."""
    from dp_accounting import get_epsilon_gaussian

    # The search for ε starts from above, where δ is 0 and its logarithm rightly minus infinity.
    with np.errstate(divide="ignore"):
        return float(get_epsilon_gaussian(sigma, delta))


def discrete_sigma(epsilon: float, delta: float, count: int = 1) -> float:
    """Return the smallest σ for which ``count`` discrete releases of sensitivity 1 keep (ε, δ).

    ValueError if ε is too small to cover the difference between discrete and continuous noise.
    """
    extra = slack(count, epsilon, delta)
    if extra > min(epsilon / 2, MAX_SLACK):
        raise ValueError(f"epsilon: {epsilon:g} is too small for {count} releases on a grid")
    return math.sqrt(count) * analytic_sigma(epsilon - extra, delta_within_slack(delta, extra))


def discrete_epsilon(sigma: float, delta: float, count: int = 1) -> float:
    """Return the ε of ``count`` discrete releases of sensitivity 1 that reveal as much as this σ.

    Infinite if they are too many.
    """
    extra = slack(count, analytic_epsilon(sigma, delta), delta)
    if extra > MAX_SLACK:
        return math.inf
    return analytic_epsilon(sigma, delta_within_slack(delta, extra)) + extra
