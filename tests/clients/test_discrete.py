"""Integer noise has the probabilities of its formula: all of them, also where hardly any lies.

Seeds are fixed. With others all tests of this file together raise a false alarm once in a million
times: a thousand of them could, each at :data:`ALARM`.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from scipy import stats

from pudica.clients.shields import discrete
from pudica.clients.shields.discrete import (
    ERROR,
    LARGEST_SCALE,
    PRECISION,
    ExactSampler,
    Integers,
    NoiseKind,
    _compute_cumulative,
    get_exact_sampler,
)
from pudica.models.randomness import Randomness, SecretGenerator, SystemGenerator, numpy_generator

KINDS: tuple[NoiseKind, ...] = ("laplace", "gaussian")
SCALES = (0.065, 0.3, 1.0, 2.3, 37.5, 1300.0, 5200.0)
WORDS = (1, 3, 8, 63)
ALARM = 1e-9
DIGITS = 420
"""Bits of the arithmetic that judges tables of 128 and 256 bits."""


class Chosen(SystemGenerator):
    """Bytes that were chosen, and then those of a seed."""

    def __init__(self, first: bytes, seed: int = 0) -> None:
        self.first, self.rest = first, numpy_generator(seed, "after what was chosen")

    def bytes(self, length: int) -> bytes:
        taken, self.first = self.first[:length], self.first[length:]
        return taken + self.rest.bytes(length - len(taken))


def at_most(kind: NoiseKind, scale: float, m: int) -> mpmath.mpf:
    """Return P(|k| ≤ m), of closed forms that share nothing with the code."""
    with mpmath.workprec(DIGITS):
        if kind == "laplace":
            step = -1 / mpmath.mpf(scale)
            return 1 - 2 * mpmath.exp((m + 1) * step) / (1 + mpmath.exp(step))
        sums = gaussian_sums(scale)
        return sums[m] if m < len(sums) else mpmath.mpf(1)


@cache
def gaussian_sums(scale: float) -> list[mpmath.mpf]:
    """Return P(|k| ≤ m) of a discrete Gaussian, until what is left out is below 2⁻³⁰⁰."""
    exact, sums, m = mpmath.mpf(scale), [mpmath.mpf(0)], 0
    # Poisson's summation: of all weights, without adding one of them up.
    total = exact * mpmath.sqrt(2 * mpmath.pi)
    total *= mpmath.jtheta(3, 0, mpmath.exp(-2 * (mpmath.pi * exact) ** 2))
    while m <= 21 * scale + 1:
        weight = (2 if m else 1) * mpmath.exp(-((m / exact) ** 2) / 2)
        sums.append(sums[-1] + weight / total)
        m += 1
    return sums[1:]


def magnitude(kind: NoiseKind, scale: float, uniform: mpmath.mpf) -> int:
    """Return m of which P(|k| < m) ≤ uniform < P(|k| ≤ m)."""
    return bisect_right(range(1 << 21), uniform, key=lambda m: at_most(kind, scale, m))


def tail(kind: NoiseKind, scale: float, least: int) -> float:
    """Return P(|k| ≥ least)."""
    if kind == "laplace":
        return float(2 * np.exp(-least / scale) / (1 + np.exp(-1 / scale))) if least else 1.0
    numbers = np.arange(least, least + int(40 * scale) + 40, dtype=np.float64)
    beyond = np.exp(-(numbers**2) / (2 * scale**2)).sum()
    reach = np.arange(1, int(40 * scale) + 40, dtype=np.float64)
    total = 1 + 2 * np.exp(-(reach**2) / (2 * scale**2)).sum()
    return float(2 * beyond / total) if least else 1.0


def law(kind: NoiseKind, scale: float, reach: int) -> np.ndarray:
    """Return P(k) of k = −reach … reach."""
    numbers = np.abs(np.arange(-reach, reach + 1, dtype=np.float64))
    power = numbers / scale if kind == "laplace" else numbers**2 / (2 * scale**2)
    weights = np.exp(-power)
    found: np.ndarray = weights / weights.sum()
    return found


def body_fits(draws: Integers, kind: NoiseKind, scale: float) -> bool:
    """Tell whether draws have their law by Pearson's test: forty bins, none of few expected."""
    reach = int(45 * scale) + 3
    expected = law(kind, scale, reach)
    bins = np.minimum(40 * np.cumsum(expected), 39).astype(int)
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    seen, wanted = (np.bincount(bins, values) for values in (counts, expected * len(draws)))
    few = wanted < 50
    seen, wanted = (np.append(each[~few], each[few].sum()) for each in (seen, wanted))
    if wanted[-1] < 50:
        seen, wanted = (np.append(each[1:-1], each[0] + each[-1]) for each in (seen, wanted))
    return len(seen) < 2 or bool(stats.chisquare(seen, wanted).pvalue > ALARM)


def tails_fit(draws: Integers, kind: NoiseKind, scale: float, reaches: tuple[float, ...]) -> bool:
    """Tell whether as many draws as expected are so many scales from 0, or further."""
    sizes = np.abs(draws)
    thresholds = [int(np.ceil(reach * scale)) for reach in reaches]
    found = [
        stats.binomtest(int((sizes >= m).sum()), len(draws), min(tail(kind, scale, m), 1.0)).pvalue
        for m in thresholds
    ]
    return bool(min(found) > ALARM)


# ---------------------------------------------------------------------------- the table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "precision"),
    [*((scale, PRECISION) for scale in SCALES), *((scale, 2 * PRECISION) for scale in SCALES[:-1])],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_exact_but_for_its_last_bits(
    kind: NoiseKind, scale: float, precision: int
) -> None:
    got = _compute_cumulative(kind, scale, precision)
    assert got == sorted(got)
    assert got[-1] == (1 << precision) - 1
    with mpmath.workprec(DIGITS):
        for m in range(0, len(got), max(1, len(got) // 2_000)):
            assert 0 < mpmath.ldexp(at_most(kind, scale, m), precision) - got[m] < ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_long_enough_for_its_last_bits(kind: NoiseKind) -> None:
    # What is left out is less than a number of so many bits can tell.
    got = _compute_cumulative(kind, 37.5, PRECISION)
    with mpmath.workprec(DIGITS):
        assert mpmath.ldexp(1 - at_most(kind, 37.5, len(got) - 1), PRECISION) < 2.0**-50


@pytest.mark.parametrize("scale", [0.065, 0.3, 1.0, 2.3, 37.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [8, 12, 16, 128])
def test_first_bits_decide_where_nothing_else_could_come_out(
    monkeypatch: pytest.MonkeyPatch, kind: NoiseKind, scale: float, precision: int
) -> None:
    # All 256 first words: the interval of numbers that begin so lies in that of a magnitude, or
    # the word is left open. Coarse tables must be refined until that is so.
    monkeypatch.setattr(discrete, "PRECISION", precision)
    sampler = ExactSampler(kind, scale, word=8)
    words = np.arange(256, dtype=np.uint64)
    found = np.searchsorted(sampler._firsts, words, side="right")
    is_open = sampler._is_undecided(found, words)
    for word, m, undecided in zip(range(256), found.tolist(), is_open.tolist(), strict=True):
        low, high = mpmath.mpf(word) / 256, mpmath.mpf(word + 1) / 256
        true = magnitude(kind, scale, low)
        if undecided:
            assert word == 255 or low < at_most(kind, scale, true) < high
        else:
            assert m == true
            assert high <= at_most(kind, scale, true)


@pytest.mark.parametrize("scale", [0.3, 2.3, 37.5])
@pytest.mark.parametrize("kind", KINDS)
def test_further_bits_decide_the_rest(
    monkeypatch: pytest.MonkeyPatch, kind: NoiseKind, scale: float
) -> None:
    monkeypatch.setattr(discrete, "PRECISION", 16)
    sampler = ExactSampler(kind, scale, word=8)
    words = np.arange(256, dtype=np.uint64)
    found = np.searchsorted(sampler._firsts, words, side="right")
    opened = np.flatnonzero(sampler._is_undecided(found, words)).tolist()
    assert opened
    for word in opened[:: max(1, len(opened) // 20)]:
        for more in range(256):
            m = sampler._resolve(word, Chosen(bytes([more]), seed=more))
            low = mpmath.mpf(256 * word + more) / 65536
            # What lies in one magnitude's interval is of that magnitude, whatever comes after.
            assert at_most(kind, scale, m) > low
            assert m == 0 or at_most(kind, scale, m - 1) < low + mpmath.mpf(1) / 65536


@pytest.mark.parametrize("scale", [0.3, 2.3, 37.5, 1300.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_from_the_far_tail_is_that_of_its_number(kind: NoiseKind, scale: float) -> None:
    # 63 ones, then a zero among 65 bits that are ones: once in 2⁶³ to 2¹⁰⁴ draws.
    sampler = get_exact_sampler(kind, scale)
    for zero in (0, 1, 5, 20, 40):
        more = ((1 << 65) - 1) ^ (1 << (64 - zero))
        chosen = b"\xff" * 8 + (more << 7).to_bytes(9, "little")
        with mpmath.workprec(DIGITS):
            number = mpmath.ldexp(mpmath.mpf((((1 << 63) - 1) << 65) | more), -128)
        assert sampler.draw(1, Chosen(chosen)).tolist() == [-magnitude(kind, scale, number)]


@pytest.mark.parametrize("scale", [2.3, 37.5])
@pytest.mark.parametrize("kind", KINDS)
def test_boundaries_are_where_they_are_to_the_last_bit(kind: NoiseKind, scale: float) -> None:
    # Numbers of 128 bits: surely below a boundary, and surely above it.
    sampler = get_exact_sampler(kind, scale)
    for m in range(0, int(4 * scale), max(1, int(scale / 5))):
        with mpmath.workprec(DIGITS):
            boundary = int(mpmath.floor(mpmath.ldexp(at_most(kind, scale, m), 128)))
        for number, wanted in ((boundary - ERROR, m), (boundary + ERROR, m + 1)):
            first, more = number >> 65, number & ((1 << 65) - 1)
            chosen = (first << 1).to_bytes(8, "little") + (more << 7).to_bytes(9, "little")
            assert sampler.draw(1, Chosen(chosen)).tolist() == [wanted]


# ---------------------------------------------------------------------------- the draws


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_their_law(kind: NoiseKind, scale: float, word: int) -> None:
    count = 400_000 if word == 63 else 20_000
    draws = ExactSampler(kind, scale, word).draw(count, numpy_generator(0, kind, str(scale), word))
    assert body_fits(draws, kind, scale)
    assert tails_fit(draws, kind, scale, (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15))


@pytest.mark.parametrize("word", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_coarse_table_is_refined_and_changes_no_probability(
    monkeypatch: pytest.MonkeyPatch, kind: NoiseKind, word: int
) -> None:
    monkeypatch.setattr(discrete, "PRECISION", 9)
    draws = ExactSampler(kind, 2.3, word).draw(30_000, numpy_generator(0, kind, word))
    assert body_fits(draws, kind, 2.3)
    assert tails_fit(draws, kind, 2.3, (0.5, 1, 2, 3, 4, 5, 6, 8))


@pytest.mark.parametrize("scale", [1.0, 37.5, 5200.0])
@pytest.mark.parametrize("kind", KINDS)
def test_tails_have_their_law(kind: NoiseKind, scale: float) -> None:
    draws = get_exact_sampler(kind, scale).draw(4_000_000, numpy_generator(1, kind, str(scale)))
    reaches = (3.5, 4, 4.5, 5, 5.5, 6) if kind == "gaussian" else (4, 5, 6, 8, 10, 12, 14, 16)
    assert tails_fit(draws, kind, scale, reaches)


@pytest.mark.parametrize("scale", [2.3, 37.5])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_the_first_bits_has_its_law(kind: NoiseKind, scale: float) -> None:
    # Given 63 ones, which comes once in 10¹⁹ draws.
    sampler, randomness = get_exact_sampler(kind, scale), numpy_generator(2, kind, str(scale))
    last = (1 << 63) - 1
    draws = np.array([sampler._resolve(last, randomness) for _ in range(20_000)])
    with mpmath.workprec(DIGITS):
        exact = (at_most(kind, scale, m) for m in range(int(150 * scale)))
        beyond = [1.0, *(float(min(mpmath.ldexp(1 - each, 63), 1)) for each in exact)]
    probabilities = -np.diff(beyond)
    counts = np.bincount(draws, minlength=len(probabilities))[: len(probabilities)]
    assert counts.sum() == 20_000
    frequent = probabilities * 20_000 >= 50
    seen = np.append(counts[frequent], counts[~frequent].sum())
    wanted = np.append(probabilities[frequent], probabilities[~frequent].sum()) * 20_000
    assert stats.chisquare(seen, wanted * 20_000 / wanted.sum()).pvalue > ALARM


@pytest.mark.parametrize("kind", KINDS)
def test_these_tests_would_see_another_law(kind: NoiseKind) -> None:
    draws = get_exact_sampler(kind, 37.5).draw(400_000, numpy_generator(0, "power"))
    assert not body_fits(draws, kind, 37.5 * 1.015)
    assert not body_fits(draws + 1, kind, 37.5)
    assert not body_fits(np.abs(draws), kind, 37.5)
    assert not body_fits(draws[draws % 8 > 0], kind, 37.5)
    many = get_exact_sampler(kind, 37.5).draw(4_000_000, numpy_generator(0, "power"))
    assert not tails_fit(many[np.abs(many) < 4 * 37.5], kind, 37.5, (4, 4.5))


# ------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_signs_are_a_bit_of_their_own(kind: NoiseKind, word: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    sampler = ExactSampler(kind, 37.5, word)
    positive = sampler.draw(1000, Chosen((words & ~np.uint64(1)).tobytes()))
    negative = sampler.draw(1000, Chosen((words | np.uint64(1)).tobytes()))
    assert (positive >= 0).all()
    assert (positive == -negative).all()
    assert (positive > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_give_the_same_draws_and_others_do_not(kind: NoiseKind) -> None:
    def keyed(key: int, purpose: bytes) -> Randomness:
        return SecretGenerator(bytes([key]) * 32, purpose)

    sampler = get_exact_sampler(kind, 1300.0)
    first = sampler.draw(1000, keyed(0, b"x")).tolist()
    assert sampler.draw(1000, keyed(0, b"x")).tolist() == first
    for other in (keyed(1, b"x"), keyed(0, b"y"), numpy_generator(0, "x"), SystemGenerator()):
        # Of two independent draws one in some thousand agrees.
        assert sum(a == b for a, b in zip(first, sampler.draw(1000, other), strict=True)) < 20


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("randomness", [numpy_generator(0), SystemGenerator()])
def test_draws_are_int64_of_the_shape_that_was_asked_for(
    count: int, randomness: Randomness
) -> None:
    draws = get_exact_sampler("gaussian", 2.3).draw(count, randomness)
    assert draws.shape == (count,)
    assert draws.dtype == np.int64


@pytest.mark.parametrize(
    "scale", [0.0, -0.0, -1.0, float("nan"), float("inf"), LARGEST_SCALE["gaussian"] * (1 + 1e-9)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_none_or_too_large_is_refused(kind: NoiseKind, scale: float) -> None:
    with pytest.raises(ValueError, match="noise of scale"):
        ExactSampler(kind, scale)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_hardly_any_scale_is_zero(kind: NoiseKind, scale: float) -> None:
    assert not get_exact_sampler(kind, scale).draw(1000, numpy_generator(0, "zero")).any()


def test_a_sampler_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    first_bits = discrete._compute_first_bits

    def noted(*arguments: Any) -> Any:
        made.append(arguments)
        return first_bits(*arguments)

    monkeypatch.setattr(discrete, "_compute_first_bits", noted)
    assert get_exact_sampler("laplace", 0.123) is get_exact_sampler("laplace", 0.123)
    assert len(made) == 1
