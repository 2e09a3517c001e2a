"""Attacks that undo the matrix transformations of paper 001 exactly, without a key.

Each of them, and each composition, is ``A' = m·A + b`` for every pixel separately, with whole
numbers m and b that are the same for all images. Paper 001 argues with the number of images that
one disguised image could come from, Eqs. (6) to (9), but several disguised images reveal m and b.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pudica.clients.shields.disguises.disguise import KeyedDisguise
from pudica.clients.shields.disguises.matrix import Addition, Multiplication, Rise
from pudica.clients.shields.disguises.steps import Step
from pudica.models.errors import RequestError, unknown_name_error

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Guess = Literal["minimum", "mid-range"]

COMMON_DIVISOR, KNOWN_PAIR = "common divisor", "one known pair"
ATTACKS = (COMMON_DIVISOR, "minimum", "mid-range", KNOWN_PAIR)
SEARCHED = 50
"""The number of images whose search space is averaged."""


def is_affine(steps: Iterable[Step]) -> bool:
    """Tell whether a disguise consists of MAT, MMT and Rise only, which these attacks are for."""
    return all(step.takes == "integers" for step in steps)


def affine_coefficients(disguise: KeyedDisguise) -> tuple[IntArray, IntArray]:
    """Return the m and b that the attacks look for, each (C, H, W); RequestError without them."""
    if not is_affine(disguise.key.steps):
        raise RequestError(
            f"{disguise.key.notation} is not a composition of MAT, MMT and Rise, which these "
            "attacks are for"
        )
    black, dark = (torch.full((1, *disguise.key.shape), v, dtype=torch.uint8) for v in (0, 1))
    b, total = (disguise.protect(image)[0].long().numpy() for image in (black, dark))
    return total - b, b


def standardise(images: NDArray[np.generic]) -> FloatArray:
    """Subtract each pixel's mean over images (N, C, H, W) and divide by its standard deviation.

    Disguised images give the same result as the plain ones, since m and b cancel. Pixels that are
    the same in all images become 0.
    """
    # Differences first, in whole numbers: offsets may be too large for a float.
    values = (images.astype(np.int64) - images[:1].astype(np.int64)).astype(np.float64)
    centred = values - values.mean(0)
    spread = centred.std(0)
    scaled: FloatArray = centred / np.where(spread > 0, spread, 1)
    return scaled


def recover_factors(disguised: IntArray) -> IntArray:
    """Return m, (C, H, W), as the greatest common divisor of differences of images (N, C, H, W).

    It is correct where the differences of the plain pixels have no common divisor, and 0 where a
    pixel is the same in all images. It takes at least two images.
    """
    m: IntArray = np.gcd.reduce(np.abs(disguised[1:] - disguised[0]), axis=0)
    return m


def guess_offsets(disguised: IntArray, m: IntArray, guess: Guess) -> IntArray:
    """Return b, (C, H, W), guessed from the disguised pixels.

    ``minimum`` assumes that the darkest pixel was 0, ``mid-range`` that darkest and brightest are
    symmetric about 127.5.
    """
    low: IntArray = disguised.min(0)
    if guess == "minimum":
        return low
    middle = (low + disguised.max(0) - 255 * m) / 2
    # b differs from every disguised pixel by a multiple of m.
    darkest = np.rint((low - middle) / np.maximum(m, 1)).astype(np.int64)
    b: IntArray = low - m * darkest
    return b


def invert_affine(
    disguised: IntArray, m: IntArray, b: IntArray, constant: NDArray[np.integer] | int = 0
) -> NDArray[np.uint8]:
    """Return the plain images, if m and b are right: uint8 of shape (N, C, H, W).

    ``constant`` is the value where m is 0, that is, where a pixel is the same in all images.
    """
    values = np.where(m > 0, (disguised - b) / np.where(m > 0, m, 1), constant)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class AttackResult:
    """The success of one attack.

    Attributes
    ----------
    images : int
        Number of disguised images that it sees.
    found : float
        Share of pixels whose m (and b, if sought) is exact, among those that differ between the
        images it sees.
    pixels : float
        Share of the pixels of all images that it restores exactly.
    error : float
        Mean absolute error of the restored pixels, 0 to 255.
    """

    attack: str
    images: int
    found: float
    pixels: float = math.nan
    error: float = math.nan


def run_attacks(
    disguise: KeyedDisguise,
    plain: NDArray[np.uint8],
    for_factors: tuple[int, ...] = (5, 10, 20),
    for_offsets: tuple[int, ...] = (20, 50, 100, 200, 400),
) -> list[AttackResult]:
    """Attack disguised images and compare the results with the plain ones.

    Parameters
    ----------
    plain : uint8 ndarray of shape (N, C, H, W)
        The attacks see only their disguised form, except for the first one in the last attack.
    for_factors, for_offsets : tuple of int
        Numbers of images to try the greatest common divisor and the guesses of b with; those
        above N are skipped.

    Raises
    ------
    RequestError
        If the disguise is no composition of MAT, MMT and Rise.
    """
    true_m, true_b = affine_coefficients(disguise)
    disguised = disguise.protect(torch.from_numpy(plain)).long().numpy()

    def score(
        attack: str, seen: int, m: IntArray, b: IntArray, constant: NDArray[np.integer] | int = 0
    ) -> AttackResult:
        is_correct = (m == true_m) & (b == true_b)
        error = np.abs(invert_affine(disguised, m, b, constant).astype(np.int64) - plain)
        exact, mean = float((error == 0).mean()), float(error.mean())
        return AttackResult(attack, seen, _share_correct(is_correct, plain[:seen]), exact, mean)

    counts = {*for_factors, *for_offsets}
    factors = {n: recover_factors(disguised[:n]) for n in counts if n <= len(plain)}
    results = [
        AttackResult(COMMON_DIVISOR, n, _share_correct(factors[n] == true_m, plain[:n]))
        for n in for_factors
        if n in factors
    ]
    for guess, n in product(get_args(Guess), filter(factors.__contains__, for_offsets)):
        b = guess_offsets(disguised[:n], factors[n], guess)
        results.append(score(guess, n, factors[n], b))
    m = recover_factors(disguised)
    b = disguised[0] - m * plain[0]
    return [*results, score(KNOWN_PAIR, len(plain), m, b, constant=plain[0])]


def _share_correct(right: NDArray[np.bool_], seen: NDArray[np.uint8]) -> float:
    """Return the share of correct pixels among those that differ between the images."""
    varied = np.ptp(seen, axis=0) > 0
    return float(right[varied].mean()) if varied.any() else float("nan")


def search_space(
    disguised: IntArray, of: Literal["MAT", "MMT"], rise: int = 0, as_printed: bool = False
) -> float:
    """Return log10 of the number of images that one disguised image could come from.

    Eqs. (6) and (7) for MAT, (8) and (9) for MMT; times ``rise``, the largest possible RISE_V, for
    Rise+MMT. Eq. (8) has A' where the text counts divisors of A': by default divisors are counted,
    and ``as_printed`` follows the equation. The number proves nothing: :func:`run_attacks` does
    not search. RequestError for another transformation.
    """
    values = disguised.ravel()
    if of not in ("MAT", "MMT"):
        raise unknown_name_error("transformation with a search space", of, ("MAT", "MMT"))
    if of == "MAT":
        choices = np.clip(values, 1, 256)
    else:
        # There are 255 numbers from 1 to 255, so the first case of Eq. (8) never occurs.
        counts = count_divisors_below_256(values)
        choices = np.where(counts > 0, values if as_printed else counts, 1)
    return float(np.log10(choices).sum() + (np.log10(rise) if rise else 0))


def mean_search_space(disguise: KeyedDisguise, plain: NDArray[np.uint8]) -> float:
    """Return the mean of :func:`search_space` over images; NaN if the paper has no formula."""
    of: Literal["MAT", "MMT"]
    match disguise.key.steps:
        case (Addition(),):
            of, rise = "MAT", 0
        case (Multiplication(),):
            of, rise = "MMT", 0
        case (Rise() as first, Multiplication()):
            of, rise = "MMT", first.rise_v
        case _:
            return float("nan")
    disguised = disguise.protect(torch.from_numpy(plain[:SEARCHED])).long().numpy()
    return float(np.mean([search_space(image, of, rise) for image in disguised]))


def count_divisors_below_256(values: IntArray) -> IntArray:
    """Return T of Eq. (8): the number of divisors from 1 to 255 of each number, 0 for 0."""
    distinct, inverse = np.unique(values, return_inverse=True)
    counts = (distinct[:, None] % np.arange(1, 256) == 0).sum(1)
    divisors: IntArray = np.where(distinct > 0, counts, 0)[inverse]
    return divisors.reshape(values.shape)
