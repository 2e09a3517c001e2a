"""Divisions of 9:1 by class, and images with a margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pudica.clients.data import DataConfig, DataError, load
from pudica.models.errors import RequestError
from pudica.strategies.loading import load_experiment

NINE_ONE = DataConfig(split="9:1")


def counts(part) -> np.ndarray:
    return np.bincount(part.labels, minlength=part.num_classes)


# ------------------------------------------------------------------------- nine to one


def test_a_tenth_of_each_class_is_for_test_and_all_else_for_training():
    splits = load(NINE_ONE, seed=0)
    test, total = counts(splits.test), counts(splits.test) + counts(splits.train)
    assert total.sum() == 1797
    assert np.abs(test - total / 10).max() <= 0.5
    assert len(splits.validation) == 0
    assert not set(splits.train.rows) & set(splits.test.rows)
    assert set(splits.train.rows) | set(splits.test.rows) == set(range(1797))


def test_the_seed_decides_who_is_in_the_tenth():
    first, again, other = (load(NINE_ONE, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.test.rows, again.test.rows)
    assert set(first.test.rows) != set(other.test.rows)
    assert np.array_equal(counts(first.test), counts(other.test))


def test_neither_part_is_sorted_by_class():
    """So that a limit, which thins at even distances, keeps every class."""
    splits = load(NINE_ONE.model_copy(update={"limit": 200}), seed=0)
    for part, size in ((splits.train, 200), (splits.test, 22)):
        assert len(part) == size
        assert np.abs(np.diff(part.labels)).mean() > 2
    assert (counts(splits.train) > 0).all()


def test_even_the_smallest_class_has_an_image_for_test(make, encode):
    sizes = {"a": 2, "b": 3, "c": 14, "d": 16, "e": 40}
    labels = [name for name, size in sizes.items() for _ in range(size)]
    images = [encode(number) for number in range(len(labels))]
    path = make.parquet(images=images, label=labels)
    splits = load(DataConfig(name="parquet", path=path, split="9:1"), seed=0)
    assert counts(splits.test).tolist() == [1, 1, 1, 2, 4]
    assert counts(splits.train).tolist() == [1, 2, 13, 14, 36]


def test_labels_stay_with_their_images(make):
    path = make.image_folder(per_class=20)
    splits = load(DataConfig(name="image-folder", path=path, split="9:1"), seed=5)
    for part, each in ((splits.train, 18), (splits.test, 2)):
        images, labels = part.batch(slice(None))
        assert ((images[:, 0, 0, 0] * 255 >= 99.5) == labels.bool()).all()
        assert counts(part).tolist() == [each, each]


def test_it_pools_a_test_split_of_its_own(make):
    config = DataConfig(name="mnist", root=make.mnist(train=20, test=20), split="9:1")
    splits = load(config, seed=0)
    assert set(splits.train.rows) | set(splits.test.rows) == set(range(40))
    assert counts(splits.test).tolist() == [1] * 10


def test_a_class_with_a_single_image_is_refused(make, encode):
    path = make.parquet(images=[encode(0)] * 7, label=["a"] * 6 + ["b"])
    with pytest.raises(DataError, match="1 classes have 2 images or more, at least 2 are needed"):
        load(DataConfig(name="parquet", path=path, split="9:1"), seed=0)


def test_a_competition_needs_validation_images():
    with pytest.raises(RequestError) as caught:
        load_experiment("themis-digits", ["data.split='9:1'"]).check()
    assert "data.split: '9:1' leaves no validation images" in str(caught.value)
    assert "allowed: own, 4:1:1" in str(caught.value)


def test_split_learning_does_without():
    load_experiment("split-digits", ["data.split='9:1'"]).check()


# ------------------------------------------------------------------------------ margin


def bordered(inner: torch.Tensor, outer: torch.Tensor, margin: int) -> torch.Tensor:
    """Return the border of the outer images as one vector; the middle must be the inner ones."""
    middle = outer[..., margin:-margin, margin:-margin]
    torch.testing.assert_close(middle, inner, rtol=0, atol=0)
    around = torch.ones(outer.shape[-2:], dtype=torch.bool)
    around[margin:-margin, margin:-margin] = False
    return outer[..., around]


def test_a_margin_is_black_all_around():
    plain, wide = (load(DataConfig(margin=margin), seed=0) for margin in (0, 3))
    assert (plain.shape, wide.shape) == ((1, 8, 8), (1, 14, 14))
    some = np.arange(20)
    for part in ("train", "validation", "test"):
        inner, outer = (getattr(splits, part) for splits in (plain, wide))
        images, labels = outer.batch(some)
        assert images.shape == (20, 1, 14, 14)
        assert (bordered(inner.batch(some)[0], images, 3) == 0).all()
        assert torch.equal(labels, inner.batch(some)[1])
        assert torch.equal(outer.pixels(some), images)


def test_a_margin_comes_after_resizing():
    config = DataConfig(image_size=20, margin=4)
    splits = load(config, seed=0)
    inner = load(DataConfig(image_size=20), seed=0).test
    assert splits.shape == (1, 28, 28)
    outer = splits.test.pixels(slice(None))
    assert (bordered(inner.pixels(slice(None)), outer, 4) == 0).all()


def test_a_normalised_margin_is_as_black_as_a_black_pixel(make):
    root = make.mnist(train=20, test=7)
    config = DataConfig(name="mnist", root=root, normalize="dataset", margin=2)
    train = load(config, seed=0).train
    images = train.batch(slice(None))[0]
    plain = load(config.model_copy(update={"margin": 0}), seed=0).train.batch(slice(None))[0]
    border = bordered(plain, images, 2)
    assert torch.allclose(border, torch.tensor(-0.1307 / 0.3081))
    assert torch.allclose(train.denormalise(images), train.pixels(slice(None)), atol=1e-6)


def test_colours_get_their_own_black(make):
    config = DataConfig(name="mnist", root=make.mnist(), channels=3, normalize="dataset", margin=1)
    splits = load(config, seed=0)
    assert splits.shape == (3, 30, 30)
    images = splits.train.batch(slice(0, 4))[0]
    assert torch.allclose(images[:, :, 0], -(splits.train.mean / splits.train.std)[:, :, 0])


def test_a_subset_keeps_the_margin():
    train = load(DataConfig(margin=2), seed=0).train
    few = train.subset(np.array([5, 9, 11]))
    assert few.batch(slice(None))[0].shape == (3, 1, 12, 12)
    assert torch.equal(few.batch(np.array([1]))[0], train.batch(np.array([9]))[0])
    assert few.subset(np.array([2])).pixels(slice(None)).shape == (1, 1, 12, 12)


@pytest.mark.parametrize("margin", [-1, 65, 1.5])
def test_impossible_margins_are_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        DataConfig(margin=margin)
