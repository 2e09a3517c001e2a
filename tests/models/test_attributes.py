"""Attributes: loss, answers and rates, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pudica.models.attributes import (
    attribute_loss,
    compute_accuracies,
    compute_balanced_accuracies,
    compute_balancing_weights,
    count_confusions,
    predict_answers,
)

# Three images, two attributes, two logits each.
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 1.0, 0.0]])
TRUTH = torch.tensor([[1, 0], [1, 1], [0, 1]])


def cross(margin: float) -> float:
    """Return the cross entropy of an answer that leads by so much."""
    return math.log(1 + math.exp(-margin))


def test_the_loss_is_the_mean_cross_entropy_over_images_and_attributes() -> None:
    wanted = [cross(1), cross(2), cross(-1), cross(3), cross(0), cross(-1)]
    assert float(attribute_loss(LOGITS, TRUTH)) == pytest.approx(sum(wanted) / 6, rel=1e-6)


def test_weights_count_each_answer_the_same() -> None:
    weights = compute_balancing_weights(TRUTH)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 0.75], [1.5, 0.75]]))
    wanted = [
        0.75 * cross(1) + 1.5 * cross(2),
        0.75 * (cross(-1) + cross(3)),
        1.5 * cross(0) + 0.75 * cross(-1),
    ]
    found = float(attribute_loss(LOGITS, TRUTH, weights))
    assert found == pytest.approx(sum(wanted) / 6, rel=1e-6)
    assert compute_balancing_weights(torch.ones(4, 1, dtype=torch.int64)).tolist() == [[0.0, 0.5]]


def test_answers_and_rates() -> None:
    answers = predict_answers(LOGITS)
    assert answers.tolist() == [[1, 0], [0, 1], [0, 0]]
    counts = count_confusions(answers, TRUTH)
    assert counts.tolist() == [[[1, 0], [1, 1]], [[1, 0], [1, 1]]]
    assert compute_accuracies(counts).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert compute_balanced_accuracies(counts).tolist() == pytest.approx([0.75, 0.75])


def test_a_rate_of_answers_that_nobody_has_is_no_number() -> None:
    counts = count_confusions(
        torch.ones(3, 1, dtype=torch.int64), torch.ones(3, 1, dtype=torch.int64)
    )
    assert torch.isnan(compute_balanced_accuracies(counts)).all()
