"""The leaderboard, rank agreement, and Eq. (1) of THEMIS.

Participants with equal accuracy share the better rank (1, 2, 2, 4), in alphabetical order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

Gaussian = tuple[float, float]
"""Mean and variance."""


def ranks(accuracies: Mapping[str, float]) -> dict[str, int]:
    """Return each participant's rank, 1 for the best."""
    series = pd.Series(dict(accuracies), dtype=float)
    # Equal counts of right answers must tie, whatever the last bit of their mean.
    ranked = series.round(9).rank(method="min", ascending=False)
    return dict(zip(accuracies, ranked.astype(int).tolist(), strict=True))


def agreement(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Return Kendall's τ_b and Spearman's ρ between two sets of accuracies.

    Both are NaN where fewer than two participants, or only ties, are left to compare.
    """
    names = [name for name in a if name in b]
    left, right = [[round(side[name], 9) for name in names] for side in (a, b)]
    if len(set(left)) < 2 or len(set(right)) < 2:
        return {"kendall_tau": float("nan"), "spearman_rho": float("nan")}
    return {
        "kendall_tau": float(kendalltau(left, right).statistic),
        "spearman_rho": float(spearmanr(left, right).statistic),
    }


def leaderboard(
    trained: Mapping[str, list[float]],
    plain: Mapping[str, float] | None = None,
    untrained: Mapping[str, list[float]] | None = None,
) -> pd.DataFrame:
    """Return the leaderboard, best first; accuracies in per cent.

    Parameters
    ----------
    trained : mapping of str to list of float
        Accuracy of each participant on each draw of the released noise, in [0, 1]. The mean
        over draws decides the rank.
    plain : mapping of str to float, optional
        Accuracy on the test set without noise.
    untrained : mapping of str to list of float, optional
        As ``trained``, under the untrained noise.

    Returns
    -------
    DataFrame
        ``rank, model, trained_accuracy, trained_std`` and, if ``plain`` and ``untrained`` are
        given, the other columns of Table 1: ``plain_accuracy, plain_rank, untrained_accuracy,
        untrained_std, untrained_delta_rank, trained_delta_rank``. A positive change of rank is
        a rise.
    """
    frame = pd.DataFrame({"model": list(trained)})
    _add_noisy(frame, "trained", trained)
    frame.insert(0, "rank", frame.pop("trained_rank"))
    if plain is not None:
        frame["plain_accuracy"] = [100 * plain[name] for name in trained]
        frame["plain_rank"] = [ranks(plain)[name] for name in trained]
        frame["trained_delta_rank"] = frame["plain_rank"] - frame["rank"]
    if plain is not None and untrained is not None:
        _add_noisy(frame, "untrained", untrained)
        frame["untrained_delta_rank"] = frame["plain_rank"] - frame.pop("untrained_rank")
    return frame.sort_values(
        ["rank", "model"],
        key=lambda column: column.str.casefold() if column.name == "model" else column,
        ignore_index=True,
    )


def _add_noisy(frame: pd.DataFrame, which: str, draws: Mapping[str, list[float]]) -> None:
    values = pd.DataFrame({name: draws[name] for name in frame["model"]})
    frame[f"{which}_accuracy"] = 100 * values.mean().to_numpy()
    frame[f"{which}_std"] = 100 * values.std(ddof=0).to_numpy()
    order = ranks({name: sum(draws[name]) / len(draws[name]) for name in frame["model"]})
    frame[f"{which}_rank"] = [order[name] for name in frame["model"]]


def gaussian_divergence(data: Gaussian, model: Gaussian) -> float:
    """Return KL(N(data) ‖ N(model)); NaN where a variance is not positive."""
    (mean, variance), (model_mean, model_variance) = data, model
    if not model_variance > 0 or not variance > 0:
        return math.nan
    # In NumPy: what participants say of their models may be absurd, but must not raise.
    with np.errstate(all="ignore"):
        distance = np.float64(mean) - np.float64(model_mean)
        spread = (variance + distance**2) / np.float64(model_variance)
        return float(0.5 * (np.log(np.float64(model_variance) / variance) + spread - 1))


def evaluate_rank_condition(
    plain: Mapping[str, float],
    trained: Mapping[str, list[float]],
    densities: Mapping[str, Gaussian],
    data: Gaussian,
    noise: Gaussian,
) -> pd.DataFrame:
    """Evaluate Eq. (1) for every pair of participants, the one better on plain images first.

    The paper models the data as N(μ_x, σ_x²), what a model has in mind as N(μ_m, σ_m²) and the
    noise as N(μ_n, σ_n²), takes a model to be the better the smaller the Kullback-Leibler
    divergence from the data to what it has in mind, and arrives at

        σ_n² / (2 μ_n)  ≤  μ_x − μ_m  ≤  upper bound

    without deriving it and without giving the upper bound. So two things are reported for a
    pair: whether the left inequality holds for the weaker model, as printed; and whether the
    divergence, worked out exactly under noise, keeps the order::

        KL'_m = ln(σ_m/σ') + (σ'² + (μ' − μ_m)²) / (2 σ_m²) − ½,  μ' = μ_x + μ_n,  σ'² = σ_x² + σ_n²

    Parameters
    ----------
    plain, trained : mapping
        As in :func:`leaderboard`.
    densities : mapping of str to (mean, variance)
        What each model has in mind; see ``Participant.density``.
    data, noise : (mean, variance)
        Over all elements of all images.

    Returns
    -------
    DataFrame
        ``better, worse, plain_gap`` and ``trained_gap`` (percentage points), ``kept`` (share
        of draws in which the order held; empty for a tie), ``lower_bound`` and ``distance``
        (the left and the middle of Eq. 1), ``eq1_holds``, and ``kl_gap_plain``,
        ``kl_gap_noisy``, ``kl_keeps`` (empty where no Gaussian describes one of the models).
    """
    rows = []
    lower = noise[1] / (2 * noise[0]) if noise[0] else math.inf
    noisy = (data[0] + noise[0], data[1] + noise[1])
    for a, b in combinations(plain, 2):
        better, worse = (a, b) if plain[a] >= plain[b] else (b, a)
        gaps = np.subtract(trained[better], trained[worse])
        before, after = (
            gaussian_divergence(given, densities[worse])
            - gaussian_divergence(given, densities[better])
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
