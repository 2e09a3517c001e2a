"""Noise that only a key's owner can repeat, and layers that draw from a seed.

The keys are fixed, so each statistical test gives the same answer whenever it is run. For
another key it would fail without a reason once in a million times.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchvision.ops import StochasticDepth

from pudica.models import build
from pudica.models.cut import Cutter
from pudica.models.randomness import (
    SecretGenerator,
    SystemGenerator,
    has_random_layers,
    temporary_seed,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ERROR_RATE = 1e-6
DRAWS = 100_000
# Of a correlation of independent draws, whose standard error is 1/√n.
LARGEST = stats.norm.isf(ERROR_RATE / 2) / DRAWS**0.5


class Replayed(SystemGenerator):
    """The system's generator with bytes that are the same in each run."""

    def __init__(self) -> None:
        self._source = np.random.default_rng(0)

    def bytes(self, length: int) -> bytes:
        return self._source.bytes(length)


GENERATORS = {"secret": lambda: SecretGenerator(KEY, b"noise"), "system": Replayed}
DISTRIBUTIONS = {"standard_normal": "norm", "standard_exponential": "expon"}


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_the_same_key_and_purpose_draw_the_same(draw: str) -> None:
    one, other = (SecretGenerator(KEY, b"noise") for _ in range(2))
    parts = [getattr(one, draw)((4, 5)), getattr(one, draw)((30,))]
    whole = getattr(other, draw)((50,))
    assert np.array_equal(np.concatenate([part.ravel() for part in parts]), whole)
    assert not np.array_equal(parts[0].ravel(), whole[20:40])


@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_another_key_or_purpose_draws_independently(draw: str) -> None:
    wanted = [(KEY, b"noise"), (OTHER, b"noise"), (KEY, b"noisf"), (KEY, b"nois"), (KEY, b"")]
    wanted.append((KEY[:-1] + b"\0", b"noise"))
    draws = [getattr(SecretGenerator(*each), draw)((DRAWS,)) for each in wanted]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < LARGEST


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_the_draws_have_the_distribution_that_they_should(name: str, draw: str) -> None:
    """By Kolmogorov and Smirnov, and independent of the ones before."""
    values = getattr(GENERATORS[name](), draw)((DRAWS,))
    assert stats.kstest(values, DISTRIBUTIONS[draw]).pvalue > ERROR_RATE
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < LARGEST
    assert np.isfinite(values).all()


def test_the_test_of_the_distribution_would_see_noise_that_is_too_small() -> None:
    values = 0.97 * SecretGenerator(KEY, b"noise").standard_normal((DRAWS,))
    assert stats.kstest(values, "norm").pvalue < ERROR_RATE


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("draw", DISTRIBUTIONS)
def test_draws_have_the_shape_and_type_that_were_asked_for(name: str, draw: str) -> None:
    for shape in ((), (0, 3), (7,), (2, 3, 4)):
        for dtype in (np.float32, np.float64):
            values = getattr(GENERATORS[name](), draw)(shape, dtype=dtype)
            assert (np.shape(values), np.asarray(values).dtype) == (shape, dtype)


def test_a_key_of_another_length_than_a_keyed_hash_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        SecretGenerator(bytes(65), b"noise")


# -------------------------------------------------------------------------- of layers


def test_dropout_drops_the_same_with_the_same_seed() -> None:
    layer, x = nn.Dropout(0.5), torch.ones(1000)

    def dropped(seed: int) -> torch.Tensor:
        with temporary_seed(seed):
            return layer(x)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))


def test_the_global_generator_goes_on_as_if_nothing_had_been() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.randn(8)
        torch.manual_seed(3)
        first = torch.randn(4)
        with temporary_seed(11):
            torch.randn(100)
        with pytest.raises(ZeroDivisionError), temporary_seed(12):
            raise ZeroDivisionError
        assert torch.equal(torch.cat([first, torch.randn(4)]), expected)


def test_seeds_may_be_nested() -> None:
    with temporary_seed(1):
        whole = torch.randn(4)
    with temporary_seed(1):
        first = torch.randn(2)
        with temporary_seed(2):
            torch.randn(7)
        assert torch.equal(torch.cat([first, torch.randn(2)]), whole)


class FunctionalDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(),
        StochasticDepth(0.2, "row"),
        FunctionalDropout(),
        nn.LSTM(4, 4, 2, dropout=0.5),
        nn.MultiheadAttention(4, 2, dropout=0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_draw_are_seen(layer: nn.Module) -> None:
    assert has_random_layers(nn.Sequential(nn.Conv2d(1, 2, 3), layer))


def test_layers_that_do_not_draw_need_no_seed() -> None:
    model = build("vgg-small", num_classes=3, channels=1, image_size=8)
    assert not has_random_layers(model)
    assert not any(has_random_layers(part) for part in Cutter(model).cut("0.5"))
