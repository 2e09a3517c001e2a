"""Eq. (1) of THEMIS, evaluated for every pair of participants.

The paper models the data as N(μ_x, σ_x²), what a model has in mind as N(μ_m, σ_m²) and the
noise as N(μ_n, σ_n²), takes a model to be the better the smaller the Kullback-Leibler
divergence from the data to what it has in mind, and arrives at

    σ_n² / (2 μ_n)  ≤  μ_x − μ_m  ≤  upper bound

without deriving it and without giving the upper bound. So two things are reported for a
pair: whether the left inequality holds for the weaker model, as printed; and whether the
model behind it, worked out exactly, keeps the order::

    KL'_m = ln(σ_m/σ') + (σ'² + (μ' − μ_m)²) / (2 σ_m²) − ½,  μ' = μ_x + μ_n,  σ'² = σ_x² + σ_n²

beside what was measured. How μ_m and σ_m are found: ``Participant.density``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

Gaussian = tuple[float, float]


def divergence(data: Gaussian, model: Gaussian) -> float:
    """Return KL(N(data) ‖ N(model)) of two Gaussians given as (mean, variance).

    NaN where the model's variance is not positive: no Gaussian describes it.
    """
    (mean, variance), (model_mean, model_variance) = data, model
    if not model_variance > 0 or not variance > 0:
        return math.nan
    # In NumPy: what participants say of their models may be absurd, and must not raise.
    with np.errstate(all="ignore"):
        distance = np.float64(mean) - np.float64(model_mean)
        spread = (variance + distance**2) / np.float64(model_variance)
        return float(0.5 * (np.log(np.float64(model_variance) / variance) + spread - 1))


def rank_condition(
    plain: Mapping[str, float],
    trained: Mapping[str, list[float]],
    densities: Mapping[str, Gaussian],
    data: Gaussian,
    noise: Gaussian,
) -> pd.DataFrame:
    """Return a row per pair of participants, the one better on plain images first.

    Parameters
    ----------
    plain, trained : mapping
        As in :func:`pudica.strategies.themis.leaderboard.leaderboard`.
    densities : mapping of str to (mean, variance)
        What each model has in mind.
    data, noise : (mean, variance)
        Over all elements of all images.

    Returns
    -------
    DataFrame
        ``better, worse, plain_gap`` and ``trained_gap`` (percentage points), ``kept`` (share
        of draws in which the order held; empty for a tie), ``lower_bound`` and ``distance``
        (the left and the middle of Eq. 1), ``eq1_holds``, ``kl_gap_plain``, ``kl_gap_noisy``,
        ``kl_keeps``.
        The three ``kl_`` columns are empty where no Gaussian describes one of the models.
    """
    rows = []
    lower = noise[1] / (2 * noise[0]) if noise[0] else math.inf
    noisy = (data[0] + noise[0], data[1] + noise[1])
    for a, b in combinations(plain, 2):
        better, worse = (a, b) if plain[a] >= plain[b] else (b, a)
        gaps = np.subtract(trained[better], trained[worse])
        before, after = (
            divergence(given, densities[worse]) - divergence(given, densities[better])
            for given in (data, noisy)
        )
        distance = data[0] - densities[worse][0]
        rows.append(
            {
                "better": better,
                "worse": worse,
                "plain_gap": 100 * (plain[better] - plain[worse]),
                "trained_gap": 100 * float(gaps.mean()),
                "kept": float((gaps > 0).mean()) if plain[better] > plain[worse] else math.nan,
                "lower_bound": lower,
                "distance": distance,
                "eq1_holds": bool(lower <= distance),
                "kl_gap_plain": before,
                "kl_gap_noisy": after,
                "kl_keeps": math.nan if math.isnan(after) else float(after > 0),
            }
        )
    return pd.DataFrame(rows)
