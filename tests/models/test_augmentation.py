"""Handwriting that is written anew: other strokes, on a background that stays black."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pudica.clients.data import DataConfig, load
from pudica.models.augmentation import AUGMENTATIONS, distort_handwriting
from pudica.models.randomness import torch_generator

BLACK = torch.zeros(1, 1, 1)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Return 64 digits in MNIST's layout, in [0, 1]."""
    config = DataConfig(name="digits", image_size=20, margin=4)
    return load(config, seed=0).train.pixels(np.arange(64))


def written(x: torch.Tensor, seed: int = 0, black: torch.Tensor = BLACK) -> torch.Tensor:
    return distort_handwriting(x, black, torch_generator(seed, "augment"))


def test_shape_type_and_range_stay(digits: torch.Tensor) -> None:
    for x in (digits, digits.repeat(1, 3, 1, 1), digits[..., 2:-2], digits[:1]):
        again = written(x)
        assert (again.shape, again.dtype) == (x.shape, x.dtype)
        assert again.min() >= 0
        assert again.max() <= 1


def test_each_image_is_changed_in_a_way_of_its_own(digits: torch.Tensor) -> None:
    again = written(digits[:1].repeat(32, 1, 1, 1))
    distances = torch.cdist(again.flatten(1), again.flatten(1)) + 1e9 * torch.eye(32)
    assert distances.min() > 0.5
    assert (again - digits[0]).flatten(1).norm(dim=1).min() > 0.5


def test_the_generator_decides(digits: torch.Tensor) -> None:
    assert torch.equal(written(digits, seed=1), written(digits, seed=1))
    assert not torch.equal(written(digits, seed=1), written(digits, seed=2))
    before = torch.random.get_rng_state()
    written(digits)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_images_that_were_given_are_left_alone(digits: torch.Tensor) -> None:
    before = digits.clone()
    written(digits)
    assert torch.equal(digits, before)


def test_what_is_black_stays_black(digits: torch.Tensor) -> None:
    assert (written(torch.zeros(8, 1, 28, 28)) == 0).all()
    again = written(digits)
    # The corners are far from any stroke, however an image is turned.
    corners = torch.stack([again[..., i, j] for i in (0, -1) for j in (0, -1)])
    assert (corners == 0).float().mean() > 0.95
    assert (again < 0.02).float().mean() > 0.4


def test_strokes_stay_bright_and_most_of_the_image_is_none(digits: torch.Tensor) -> None:
    again = written(digits)
    brightest = again.amax((1, 2, 3)) / digits.amax((1, 2, 3))
    assert brightest.min() > 0.9
    assert 0.5 < float(again.mean() / digits.mean()) < 2


@pytest.mark.parametrize(("mean", "std"), [(0.1307, 0.3081), (0.5, 0.25)])
def test_in_normalised_units_it_is_the_same(digits: torch.Tensor, mean: float, std: float) -> None:
    """Black is then −mean/std."""
    black = torch.full((1, 1, 1), -mean / std)
    normalised = written((digits - mean) / std, black=black)
    torch.testing.assert_close(normalised * std + mean, written(digits), atol=2e-4, rtol=0)
    assert normalised.min() >= -mean / std - 1e-6


def test_every_augmentation_leaves_its_batch_a_batch(digits: torch.Tensor) -> None:
    for name, change in AUGMENTATIONS.items():
        again = change(digits, BLACK, torch_generator(0, name))
        assert again.shape == digits.shape
        assert torch.isfinite(again).all()
