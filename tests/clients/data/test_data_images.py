"""Batches: values, normalisation, colour, size, speed."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pudica.clients.data import DataConfig, DataError, load


def test_batch_is_typed_shaped_and_in_unit_range():
    train = load(DataConfig(), seed=0).train
    images, labels = train.batch(np.arange(64))
    assert images.shape == (64, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.min() == 0
    assert images.max() == 1
    assert torch.equal(labels, torch.from_numpy(train.labels[:64]))


def test_digits_keep_their_values():
    from sklearn.datasets import load_digits

    test = load(DataConfig(), seed=0).test
    expected = torch.from_numpy(load_digits().images[test.rows] / 16).float()
    assert (test.pixels(slice(None))[:, 0] - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_positions_may_be_slices_indices_or_masks():
    train = load(DataConfig(), seed=0).train
    mask = np.zeros(len(train), dtype=bool)
    mask[2:5] = True
    for positions in (slice(2, 5), np.array([2, 3, 4]), mask):
        assert torch.equal(train.batch(positions)[0], train.pixels(np.array([2, 3, 4])))


def test_a_batch_may_be_changed_without_changing_the_data():
    train = load(DataConfig(), seed=0).train
    before = train.labels[:4].copy()
    images, labels = train.batch(slice(0, 4))
    images.add_(1)
    labels.add_(1)
    assert np.array_equal(train.labels[:4], before)
    assert train.pixels(slice(0, 4)).max() <= 1


def test_subset_counts_within_the_part():
    train = load(DataConfig(), seed=0).train
    few = train.subset(np.array([5, 9, 11]))
    assert len(few) == 3
    assert torch.equal(few.batch(np.array([1]))[0], train.batch(np.array([9]))[0])
    assert np.shares_memory(few.images, train.images)


def test_published_statistics_and_back(make):
    root = make.mnist()
    plain, normalised = (
        load(DataConfig(name="mnist", root=root, normalize=how), seed=0).train
        for how in (None, "dataset")
    )
    pixels, batch = plain.batch(slice(None))[0], normalised.batch(slice(None))[0]
    assert torch.allclose(batch, (pixels - 0.1307) / 0.3081)
    assert torch.equal(normalised.pixels(slice(None)), pixels)
    assert torch.allclose(normalised.denormalise(batch), pixels, atol=1e-6)
    assert torch.equal(plain.denormalise(pixels), pixels)


def test_statistics_of_a_grey_set_serve_three_equal_channels(make):
    config = DataConfig(name="mnist", root=make.mnist(), normalize="dataset", channels=3)
    splits = load(config, seed=0)
    assert splits.shape == (3, 28, 28)
    assert splits.train.mean.flatten().tolist() == pytest.approx([0.1307] * 3)


def test_sets_without_published_statistics_are_not_normalised():
    with pytest.raises(ValueError, match=r"no published mean and standard deviation.*none"):
        DataConfig(name="att-faces", normalize="dataset")
    with pytest.raises(ValueError, match="of RGB, but channels is 1"):
        DataConfig(name="cifar10", normalize="dataset", channels=1)


def test_resizing_is_bilinear_and_antialiased(make, encode):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    make.image("own/a/noise.png").write_bytes(encode(0))
    make.image_folder(per_class=6)
    Image.fromarray(pixels).save(make.root / "own/a/noise.png")
    config = DataConfig(
        name="image-folder", path=make.root / "own", image_size=10, channels=1, limit=None
    )
    splits = load(config, seed=0)
    assert splits.shape == (1, 10, 10)
    expected = np.asarray(Image.fromarray(pixels).resize((10, 10), Image.Resampling.BILINEAR))
    assert any(np.array_equal(image[0], expected) for image in splits.train.images)


def test_colour_and_grey_are_converted_when_asked(make):
    path = make.image_folder()
    colour, grey = (
        load(DataConfig(name="image-folder", path=path, channels=channels), seed=0)
        for channels in (None, 1)
    )
    assert colour.shape == (3, 12, 12)
    assert grey.shape == (1, 12, 12)
    first = np.asarray(Image.open(path / "a/0.png").convert("L"))
    assert np.array_equal(grey.train.images[0, 0], first)


def test_a_grey_image_joins_a_colour_set_but_not_the_reverse(make):
    path = make.image_folder()
    make.image("own/b/9.png", 7, mode="L")
    splits = load(DataConfig(name="image-folder", path=path), seed=0)
    assert (splits.train.images[-1] == 7).all()
    make.image("own/a/.hidden.png")
    make.image("own/a/0.png", 7, mode="L")
    with pytest.raises(DataError, match=r"1\.png.*colour image in a set whose first.*channels"):
        load(DataConfig(name="image-folder", path=path), seed=0)


def test_a_photograph_is_turned_upright(make):
    make.image_folder()
    half = np.zeros((12, 12, 3), np.uint8)
    half[:6] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(half).save(make.root / "own/a/0.png", exif=exif)
    splits = load(DataConfig(name="image-folder", path=make.root / "own"), seed=0)
    assert (splits.train.images[0, :, 6:] == 255).all()


def test_a_batch_is_cheap():
    train = load(DataConfig(), seed=0).train
    positions = np.random.default_rng(0).integers(0, len(train), 64)

    def seconds() -> float:
        start = time.perf_counter()
        train.batch(positions)
        return time.perf_counter() - start

    # Some 10 µs; the bound leaves room for a busy machine and still rules out a copy of all.
    assert min(seconds() for _ in range(200)) < 1e-3


def test_configuration_survives_a_pickle_and_json():
    config = DataConfig(name="mnist", partition={"scheme": "dirichlet", "alpha": 0.1})
    assert pickle.loads(pickle.dumps(config)) == config
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
