"""Disguised data sets: what a model sees, under which key, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pudica.clients.data import DataConfig, load
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator, numpy_generator

EVERYTHING = slice(0, 10**6)


def raw(part: object) -> torch.Tensor:
    return torch.from_numpy(np.take(part.images, part.rows, axis=0))


@pytest.mark.parametrize(
    "notation", ["MAT(256)", "MMT(1000)+MAT(5)", "Sharma(4)", "Kiya", "Blur(1)"]
)
def test_every_part_is_disguised_under_one_key(notation: str) -> None:
    splits = load(DataConfig(name="digits", shield=notation, normalize="none"), seed=3)
    disguise = KeyedDisguise(Key.new(notation, (1, 8, 8), numpy_generator(3, "key")))
    low, high = disguise.span.low, disguise.span.high
    for part in (splits.train, splits.validation, splits.test):
        expected = (disguise.protect(raw(part)).double() - low) / (high - low)
        torch.testing.assert_close(part.pixels(EVERYTHING), expected.float(), rtol=0, atol=0)
        torch.testing.assert_close(part.batch(EVERYTHING)[0], expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("notation", ["MAT(2048)", "Rise(400)+MMT(10000)", "Sharma(2, noise=50)"])
def test_disguised_images_are_standardised_by_their_own_training_part(notation: str) -> None:
    splits = load(DataConfig(name="digits", shield=notation), seed=0)
    images, _ = splits.train.batch(EVERYTHING)
    assert images.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert images.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(splits.test.mean, splits.train.mean)
    assert torch.equal(splits.validation.std, splits.train.std)


def test_plain_images_can_be_standardised_too() -> None:
    part = load(DataConfig(name="digits", normalize="training"), seed=0).train
    pixels = part.pixels(EVERYTHING).double()
    assert part.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert part.std.item() == pytest.approx(pixels.std(correction=0).item(), abs=1e-6)


def test_a_key_from_a_file_is_used(tmp_path: Path) -> None:
    key = Key.new("MAT(256)", (1, 8, 8), SystemGenerator())
    key.save(tmp_path / "a.key")
    config = DataConfig(name="digits", shield="mat(256)", key=tmp_path / "a.key", normalize="none")
    part = load(config, seed=0).test
    expected = (KeyedDisguise(key).protect(raw(part)).double() - 1) / 510
    torch.testing.assert_close(part.pixels(EVERYTHING), expected.float(), rtol=0, atol=0)


def test_a_margin_is_disguised_too(tmp_path: Path) -> None:
    Key.new("MAT(256)", (1, 12, 12), SystemGenerator()).save(tmp_path / "a.key")
    config = DataConfig(name="digits", margin=2, shield="MAT(256)", key=tmp_path / "a.key")
    splits = load(config, seed=0)
    images, _ = splits.train.batch(slice(0, 5))
    assert images.shape == (5, 1, 12, 12) == (5, *splits.shape)
    assert images[:, :, 0].std() > 0.1  # the black edge shows R


def test_fingerprints_tell_keys_apart() -> None:
    plain = DataConfig(name="digits")
    configs = [plain, *(DataConfig(name="digits", shield=s) for s in ("MAT(256)", "MAT(255)"))]
    prints = {load(config, seed=0).fingerprint for config in configs}
    assert len(prints) == 3
    assert load(plain, seed=0).fingerprint in prints
    assert load(configs[1], seed=0).key != load(configs[1], seed=1).key
    assert len({load(config, seed=0).content_hash for config in configs}) == 1
    assert [bool(load(config, seed=0).key) for config in configs] == [False, True, True]


def test_parts_of_a_part_stay_disguised() -> None:
    part = load(DataConfig(name="digits", shield="MAT(256)"), seed=0).train
    chosen = np.array([5, 1, 8])
    assert torch.equal(part.subset(chosen).batch(slice(0, 3))[0], part.batch(chosen)[0])


# ------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("notation", "shape"), [("MAT(255)", (1, 8, 8)), ("MAT(256)", (1, 9, 9))])
def test_a_key_for_something_else_is_refused(
    notation: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    key = Key.new(notation, shape, SystemGenerator())
    key.save(tmp_path / "a.key")
    with pytest.raises(
        RequestError, match=rf"{key.fingerprint}\) is for .* wanted is MAT\(256\) of 1x8x8"
    ):
        load(DataConfig(name="digits", shield="MAT(256)", key=tmp_path / "a.key"), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shield": "MTA(256)"}, "unknown transformation 'MTA'"),
        ({"shield": "MAT(0)"}, "at least 1"),
        ({"shield": ""}, "is not a step of a disguise"),
        ({"key": "a.key"}, "no shield that it could be the key of"),
        ({"shield": "MAT(2)", "normalize": "dataset"}, "allowed: normalize: training, none"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(name="mnist", **settings)


def test_a_shield_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(RequestError, match="does not divide images of 8x8; allowed: 1, 2, 4, 8"):
        load(DataConfig(name="digits", shield="Sharma(5)"), seed=0)
