"""Ranks, ties, agreement, and Eq. (1)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pudica.strategies.themis.leaderboard import (
    agreement,
    evaluate_rank_condition,
    gaussian_divergence,
    leaderboard,
    ranks,
)


def test_ties_share_the_better_rank() -> None:
    assert ranks({"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1}) == {"a": 2, "b": 1, "c": 2, "d": 4}


def test_the_last_bit_of_a_mean_does_not_break_a_tie() -> None:
    assert ranks({"a": (0.1 + 0.2 + 0.3) / 3, "b": 0.2}) == {"a": 1, "b": 1}


def test_the_leaderboard_is_best_first_and_ties_are_alphabetical() -> None:
    board = leaderboard({"b": [0.5, 0.5], "a": [0.5, 0.5], "c": [0.7, 0.9]})
    assert board["model"].tolist() == ["c", "a", "b"]
    assert board["rank"].tolist() == [1, 2, 2]
    assert board["trained_accuracy"].tolist() == pytest.approx([80, 50, 50])
    assert board["trained_std"].tolist() == pytest.approx([10, 0, 0], abs=1e-9)
    assert "plain_accuracy" not in board


def test_a_rise_is_positive_as_in_table_one() -> None:
    # UTKFace in Table 1.
    plain = {"LeNet": 0.8857, "ResNet-56": 0.8931, "VGG16": 0.9070}
    untrained = {"LeNet": [0.6446], "ResNet-56": [0.6501], "VGG16": [0.5706]}
    trained = {"LeNet": [0.8275], "ResNet-56": [0.8291], "VGG16": [0.8306]}
    board = leaderboard(trained, plain, untrained).set_index("model")
    assert board["untrained_delta_rank"].to_dict() == {"LeNet": 1, "ResNet-56": 1, "VGG16": -2}
    assert set(board["trained_delta_rank"]) == {0}


def test_agreement_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    a = {name: i / 10 for i, name in enumerate("abcd")}
    assert agreement(a, a) == pytest.approx({"kendall_tau": 1, "spearman_rho": 1})
    backwards = {name: -value for name, value in a.items()}
    assert agreement(a, backwards) == pytest.approx({"kendall_tau": -1, "spearman_rho": -1})
    assert math.isnan(agreement({"a": 1.0}, {"a": 1.0})["kendall_tau"])
    assert math.isnan(agreement({"a": 1.0, "b": 1.0}, a)["spearman_rho"])


def test_divergence_equals_its_integral() -> None:
    data, model = (0.3, 0.5), (-0.2, 1.7)
    x = np.linspace(-12, 12, 200_001)

    def log_density(mean: float, variance: float) -> np.ndarray:
        return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)

    p = np.exp(log_density(*data))
    numeric = np.trapezoid(p * (log_density(*data) - log_density(*model)), x)
    assert gaussian_divergence(data, model) == pytest.approx(numeric, rel=1e-6)
    assert gaussian_divergence(data, data) == pytest.approx(0)
    assert math.isnan(gaussian_divergence(data, (0.0, -1.0)))
    for absurd in ((1e200, 1.0), (0.0, 5e-324), (float("nan"), 1.0)):
        assert not gaussian_divergence(data, absurd) < 1e6  # infinite or nothing, and no exception


def test_rank_condition_has_a_row_per_pair_with_the_better_one_first() -> None:
    table = evaluate_rank_condition(
        plain={"a": 0.8, "b": 0.9, "c": 0.7},
        trained={"a": [0.6, 0.7], "b": [0.65, 0.65], "c": [0.5, 0.5]},
        densities={"a": (0.1, 1.0), "b": (0.2, 1.2), "c": (0.0, -1.0)},
        data=(0.3, 0.5),
        noise=(0.1, 0.04),
    ).set_index(["better", "worse"])
    assert len(table) == 3
    pair = table.loc[("b", "a")]
    assert pair["kept"] == 0.5
    assert pair["plain_gap"] == pytest.approx(10)
    assert pair["lower_bound"] == pytest.approx(0.2)
    assert pair["distance"] == pytest.approx(0.2)
    assert math.isnan(table.loc[("a", "c"), "kl_keeps"])
    before = gaussian_divergence((0.3, 0.5), (0.1, 1.0)) - gaussian_divergence(
        (0.3, 0.5), (0.2, 1.2)
    )
    assert pair["kl_gap_plain"] == pytest.approx(before)
