"""The attacks find what there is to find, and fail where they must."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.clients.shields.disguises.breaks import (
    affine_coefficients,
    count_divisors_below_256,
    guess_offsets,
    invert_affine,
    recover_factors,
    run_attacks,
    search_space,
    standardise,
)
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator, numpy_generator

SHAPE = (1, 6, 6)
COMPOSITIONS = [
    "MAT(256)",
    "MMT(1000)",
    "Rise(100)+MMT(1000)",
    "MAT(256)+MMT(10)",
    "MMT(10)+MAT(2048)",
    "MMT(9)+MAT(50)+Rise(3)+MMT(7)",
]


def plain(count: int, seed: int = 0) -> np.ndarray:
    """Images whose pixels are 0 at least once and 255 at least once."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    images[1], images[2] = 0, 255
    return images


def disguise(notation: str, seed: int = 0) -> KeyedDisguise:
    return KeyedDisguise(Key.new(notation, SHAPE, numpy_generator(seed, "key")))


def seen(images: np.ndarray, by: KeyedDisguise) -> np.ndarray:
    return by.protect(torch.from_numpy(images)).long().numpy()


@pytest.mark.parametrize("notation", COMPOSITIONS)
def test_every_composition_is_affine_for_each_pixel(notation: str) -> None:
    images, shield = plain(50), disguise(notation)
    m, b = affine_coefficients(shield)
    np.testing.assert_array_equal(seen(images, shield), m * images.astype(np.int64) + b)


def test_m_and_b_are_the_keys_matrices() -> None:
    shield = disguise("MAT(256)+MMT(10)")
    added, factor = (shield.key.tensors[f"{place}/R"].numpy() for place in (0, 1))
    m, b = affine_coefficients(shield)
    np.testing.assert_array_equal(m, factor)
    np.testing.assert_array_equal(b, added * factor)


@pytest.mark.parametrize("notation", COMPOSITIONS)
def test_z_scores_of_disguised_images_are_those_of_plain_ones(notation: str) -> None:
    images = plain(40)
    np.testing.assert_allclose(
        standardise(seen(images, disguise(notation))), standardise(images), atol=1e-9
    )


def test_z_scores_of_a_pixel_that_never_changes_are_zero() -> None:
    images = plain(10)
    images[:, 0, 0, 0] = 7
    assert not standardise(seen(images, disguise("MAT(256)")))[:, 0, 0, 0].any()


@pytest.mark.parametrize("notation", COMPOSITIONS)
def test_twenty_images_without_the_key_are_undone(notation: str) -> None:
    images, shield = plain(20), disguise(notation)
    disguised = seen(images, shield)
    m = recover_factors(disguised)
    np.testing.assert_array_equal(m, affine_coefficients(shield)[0])
    for guess in ("minimum", "mid-range"):
        b = guess_offsets(disguised, m, guess)
        np.testing.assert_array_equal(invert_affine(disguised, m, b), images)


def test_a_common_divisor_of_the_pixels_themselves_is_taken_for_the_keys() -> None:
    images = plain(20) // 2 * 2
    m = recover_factors(seen(images, disguise("MMT(10)")))
    np.testing.assert_array_equal(m, 2 * affine_coefficients(disguise("MMT(10)"))[0])


def test_images_under_two_keys_give_neither_unless_they_are_sorted() -> None:
    """What 20 images under one key give away, 10 each under two keys do not, if pooled."""
    images = plain(20)
    owners = [disguise("MAT(256)+MMT(1000)", seed) for seed in (0, 1)]
    mixed = np.concatenate([seen(images[i::2], owner) for i, owner in enumerate(owners)])
    keys = [affine_coefficients(owner) for owner in owners]
    m = recover_factors(mixed)
    assert all((m == key[0]).mean() < 0.1 for key in keys)
    shown = invert_affine(mixed, m, guess_offsets(mixed, m, "minimum"))
    assert (shown == np.concatenate([images[0::2], images[1::2]])).mean() < 0.1


@pytest.mark.parametrize("notation", COMPOSITIONS)
def test_breaks_tell_how_far_each_attack_comes(notation: str) -> None:
    shield = KeyedDisguise(Key.new(notation, SHAPE, SystemGenerator()))
    found = {(each.attack, each.images): each for each in run_attacks(shield, plain(60))}
    assert set(found) == {
        *(("common divisor", n) for n in (5, 10, 20)),
        *((guess, n) for guess in ("minimum", "mid-range") for n in (20, 50)),
        ("one known pair", 60),
    }
    for attack in [("common divisor", 20), ("minimum", 50), ("one known pair", 60)]:
        assert found[attack].found == 1
    assert (found["minimum", 50].pixels, found["minimum", 50].error) == (1, 0)
    assert math.isnan(found["common divisor", 20].pixels)


def test_a_known_pair_tells_what_never_changes() -> None:
    images = plain(60)
    images[:, :, 2] = 200
    pair = run_attacks(disguise("MAT(256)+MMT(10)"), images)[-1]
    assert (pair.attack, pair.found, pair.pixels, pair.error) == ("one known pair", 1, 1, 0)


def test_shares_are_of_the_pixels_that_vary_among_the_images_seen() -> None:
    images = plain(60)
    images[:5, :, :3] = 9  # the upper half is the same in the first five
    images[:5, :, 3:] = np.array([0, 1, 255, 7, 20], np.uint8)[:, None, None, None]
    (five, *_) = run_attacks(disguise("MMT(10)"), images)
    assert (five.images, five.found) == (5, 1)


def test_b_found_counts_only_where_m_is() -> None:
    images = plain(60) // 2 * 2  # even pixels: m comes out twice as large
    images[2] = 254
    assert all(each.found == 0 for each in run_attacks(disguise("MMT(10)"), images))


@pytest.mark.parametrize("notation", ["MAT(1000000000000000)", "MAT(100)+MMT(1000000000000)"])
def test_z_scores_of_large_numbers_are_right(notation: str) -> None:
    images = plain(100)
    images[:, :, 2] = 200
    apart = standardise(seen(images, disguise(notation))) - standardise(images)
    assert np.abs(apart).max() < 1e-9


def test_a_guess_that_is_wrong_is_told_as_wrong() -> None:
    images = plain(60) // 2 + 20  # nothing darker than 20
    minimum = next(b for b in run_attacks(disguise("MAT(256)"), images) if b.attack == "minimum")
    assert (minimum.found, minimum.pixels) == (0, 0)
    assert minimum.error == pytest.approx(20)


@pytest.mark.parametrize("notation", ["Kiya", "Sharma(2)", "Noise(5)", "Blur(0.5)+MAT(3)"])
def test_other_disguises_are_not_affine(notation: str) -> None:
    with pytest.raises(RequestError, match="not a composition of MAT, MMT and Rise"):
        affine_coefficients(disguise(notation))


# --------------------------------------------------------------------- search space


def test_divisors_are_those_of_the_papers_examples() -> None:
    values = np.array([3, 15, 1, 0, 256, 510])
    # 256 and 510 = 2·3·5·17 have nine and sixteen; only they themselves are not below 256.
    assert count_divisors_below_256(values).tolist() == [2, 4, 1, 0, 8, 15]


def test_search_spaces_worked_out_by_hand() -> None:
    image = np.array([[[3, 100], [300, 256]]])
    assert search_space(image, "MAT") == pytest.approx(math.log10(3 * 100 * 256 * 256))
    image = np.array([[[3, 15], [0, 1]]])
    assert search_space(image, "MMT") == pytest.approx(math.log10(2 * 4))
    assert search_space(image, "MMT", as_printed=True) == pytest.approx(math.log10(3 * 15))
    with pytest.raises(RequestError, match="Allowed: MAT, MMT"):
        search_space(image, "mat")
    assert search_space(image, "MMT", rise=400) == pytest.approx(math.log10(2 * 4 * 400))
