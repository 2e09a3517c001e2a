"""Ranks, rank changes and rank agreement.

Ties: participants with equal accuracy share the better rank (1, 2, 2, 4), and are listed in
alphabetical order.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from scipy.stats import kendalltau, spearmanr


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
        As ``trained``, with the noise generator before its training.

    Returns
    -------
    DataFrame
        ``rank, model, trained_accuracy, trained_std`` and, where there is something to
        compare with, the columns of Table 1: ``plain_accuracy, plain_rank,
        untrained_accuracy, untrained_std, untrained_delta_rank, trained_delta_rank``. A
        positive change of rank is a rise.
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
    return frame.sort_values(["rank", "model"], key=_casefolded, ignore_index=True)


def _add_noisy(frame: pd.DataFrame, which: str, draws: Mapping[str, list[float]]) -> None:
    values = pd.DataFrame({name: draws[name] for name in frame["model"]})
    frame[f"{which}_accuracy"] = 100 * values.mean().to_numpy()
    frame[f"{which}_std"] = 100 * values.std(ddof=0).to_numpy()
    order = ranks({name: sum(draws[name]) / len(draws[name]) for name in frame["model"]})
    frame[f"{which}_rank"] = [order[name] for name in frame["model"]]


def _casefolded(column: pd.Series) -> pd.Series:
    return column.str.casefold() if column.name == "model" else column
