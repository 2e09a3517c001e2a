"""Shields without a guarantee: few levels, and activations that say little of their images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from pudica.clients.shields import NoPeek, NoShield, Quantise
from pudica.clients.shields.no_peek import distance_correlation


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- few levels


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.7, 0.3), (-1e6, 1e6)])
def test_there_are_as_many_values_as_bits_can_tell(bits: int, low: float, high: float) -> None:
    x = torch.linspace(2 * low - high, 2 * high - low, 20_000).reshape(10, 2000)
    out = Quantise(bits=bits, low=low, high=high)(x)
    values = out.unique()
    assert len(values) == 2**bits
    assert values[[0, -1]].tolist() == pytest.approx([low, high], rel=1e-6)
    step = (high - low) / (2**bits - 1)
    torch.testing.assert_close(values.diff(), torch.full((2**bits - 1,), step), rtol=1e-3, atol=0)
    # It is the nearest one; what is a level stays.
    assert (out - x.clamp(low, high)).abs().max() <= step / 2 * (1 + 1e-3)
    assert torch.equal(Quantise(bits=bits, low=low, high=high)(out), out)


def test_a_gradient_passes_where_nothing_was_clamped() -> None:
    x = torch.tensor([[-2.0, -0.1, 0.1, 0.4, 0.9, 1.1]]).requires_grad_()
    weights = torch.arange(1.0, 7)
    out = Quantise(bits=1)(x)
    assert out.tolist() == [[0, 0, 0, 0, 1, 1]]
    (out * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 3, 4, 5, 0]]


@pytest.mark.parametrize("shield", [Quantise(), NoPeek()])
def test_nothing_is_promised(shield: Quantise | NoPeek) -> None:
    guarantee = shield.guarantee()
    assert guarantee == shield.claimed()
    assert guarantee.epsilon is None
    assert "an obfuscation" in guarantee.reasons[0]


# ------------------------------------------------------------------ distance correlation


def correlate(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(distance_correlation(x, y))


def test_what_is_independent_hardly_correlates_and_what_depends_does() -> None:
    x = draw(1000, 2).double()
    assert correlate(x, draw(1000, 2, seed=1)) < 0.1
    # Pearson's correlation with a square is 0.
    assert correlate(x, x.square()) > 0.3
    assert correlate(x[:, :1], 3 - 2 * x[:, :1]) == pytest.approx(1, abs=1e-6)


def test_neither_order_nor_place_nor_turn_nor_scale_matters() -> None:
    x, y = draw(64, 3, 4, 4), draw(64, 20, seed=1) + draw(64, 48)[:, :20]
    found = correlate(x, y)
    assert 0.1 < found < 0.95
    turn, _ = np.linalg.qr(draw(20, 20, seed=2).numpy())
    for other in (y + 5, 1e-30 * y, 1e30 * y, y @ torch.from_numpy(turn), y.reshape(64, 4, 5)):
        assert correlate(x, other) == pytest.approx(found, abs=1e-5)
    assert correlate(y, x) == pytest.approx(found, abs=1e-6)
    assert correlate(x.flip(0), y.flip(0)) == pytest.approx(found, abs=1e-6)
    assert correlate(x, 7 * x.flatten(1) @ torch.linalg.qr(draw(48, 48))[0]) == pytest.approx(1)


def test_it_is_its_definition_in_plain_numbers() -> None:
    x, y = draw(9, 3).double().numpy(), draw(9, 2, seed=1).double().numpy()

    def centred(rows: np.ndarray) -> np.ndarray:
        d = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()

    a, b = centred(x), centred(y)
    expected = np.sqrt((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))
    found = correlate(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    x, y = draw(7, 3).double(), draw(7, 4, seed=1).double().requires_grad_()
    assert gradcheck(lambda values: distance_correlation(x, values), (y,))


@pytest.mark.parametrize(
    "activations",
    [torch.zeros(6, 4), torch.full((6, 4), 3e7), draw(3, 4).repeat(2, 1), 1e-42 * draw(6, 4)],
)
def test_equal_examples_do_no_harm(activations: torch.Tensor) -> None:
    """As behind a ReLU that is dead, or of an image that is there twice."""
    images, y = draw(6, 5), activations.clone().requires_grad_()
    for x in (images, torch.zeros(6, 5)):
        penalty = NoPeek(weight=2.0).penalty(x, y)
        assert penalty is not None
        (gradient,) = torch.autograd.grad(penalty, y)
        assert 0 <= float(penalty.detach()) <= 2 * (1 + 1e-6)
        assert gradient.isfinite().all()


def test_batches_of_different_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="4 examples and 3: they must be the same"):
        distance_correlation(draw(4, 2), draw(3, 2))


def test_a_penalty_is_weighted_and_left_out_where_there_is_none() -> None:
    images, y = draw(8, 1, 3, 3), draw(8, 5, seed=1)
    one, three = (NoPeek(weight=weight).penalty(images, y) for weight in (1.0, 3.0))
    assert one is not None
    assert three is not None
    assert float(one) == pytest.approx(correlate(images, y))
    assert float(three) == pytest.approx(3 * float(one))
    assert NoPeek(weight=0).penalty(images, y) is None
    assert NoPeek().penalty(images[:1], y[:1]) is None
    assert NoShield().penalty(images, y) is None
    assert (NoPeek.has_penalty(), NoShield.has_penalty()) == (True, False)
    assert torch.equal(NoPeek()(y), y)
