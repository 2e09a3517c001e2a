"""Exact integer noise: the discrete Laplace and the discrete Gaussian distribution.

``P(k) ∝ exp(−|k|/b)`` and ``P(k) ∝ exp(−k²/2σ²)`` on all integers (Canonne, Kamath and Steinke
2020). Floating-point noise has gaps that differ from record to record, so the last bits of a
release identify the record (Mironov 2012). Integers have no such bits.

A magnitude is drawn by inverting its cumulative distribution. The first 63 random bits decide all
but one draw in 10¹⁴, further bits decide the rest, and the distribution is computed to as many
digits as needed. So every probability is exact, also in the tails. It takes a hundredth of the
time of rejection sampling with integers (OpenDP 0.16: 775 ms for 64×1280 draws on one core;
here 8 ms).
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pudica.models.randomness import Randomness

NoiseKind = Literal["laplace", "gaussian"]
Integers = NDArray[np.int64]

WORD = 63
"""Random bits that decide most draws; one more bit is the sign."""
LEADING = 20
"""Leading bits among them that index a lookup table of a million numbers."""
PRECISION = 128
"""Bits to which the distribution is computed at first if :data:`WORD` bits do not decide."""
GUARD = 64
"""Guard bits of that computation, which absorb its rounding errors: :func:`_compute_weights`."""
ERROR = 3
"""A computed boundary is too small by less than this many units of its last bit."""
LARGEST_SCALE: dict[NoiseKind, float] = {"gaussian": 2.0**16, "laplace": 2.0**14}
"""The largest scales, so that building a table takes a few seconds and some hundred megabytes.

A table has about 13 entries per unit of σ, and 133 per unit of b.
"""


class ExactSampler:
    """Draws exact samples of one distribution, from ``word`` random bits to begin with.

    The scale, b or σ in units of the integers, is taken as an exact number; ValueError unless it
    is above 0 and its table not too large.
    """

    def __init__(self, kind: NoiseKind, scale: float, word: int = WORD) -> None:
        most = LARGEST_SCALE[kind]
        if not 0 < scale <= most:
            raise ValueError(f"{kind} noise of scale {scale:g} steps; allowed: up to {most:g}")
        self.kind, self.scale, self.word = kind, scale, word
        self._firsts = _compute_first_bits(kind, scale, word)
        self._leading = min(word, LEADING)
        # The magnitude at the start of each bucket, and at the end of the last one.
        starts = np.arange(1 << self._leading, dtype=np.uint64) << np.uint64(word - self._leading)
        magnitudes = np.searchsorted(self._firsts, starts, side="right")
        self._guide = np.append(magnitudes, len(self._firsts)).astype(np.int32)

    def draw(self, count: int, randomness: Randomness) -> Integers:
        """Return independent draws, int64 of shape (count,)."""
        words = np.frombuffer(randomness.bytes(8 * count), np.uint64)
        first = words >> np.uint64(64 - self.word)
        magnitudes = self._search(first)
        for index in np.flatnonzero(self._is_undecided(magnitudes, first)):
            magnitudes[index] = self._resolve(int(first[index]), randomness)
        # The sign is the last bit, which is not among the first 63. For zero it has no effect.
        return np.where(words & np.uint64(1), -magnitudes, magnitudes)

    def _search(self, first: NDArray[np.uint64]) -> Integers:
        """Return how many boundaries are not above the first bits.

        For nearly all draws the leading bits decide: a table lookup instead of a search.
        """
        bucket = (first >> np.uint64(self.word - self._leading)).astype(np.int64)
        magnitudes = self._guide[bucket].astype(np.int64)
        several = np.flatnonzero(self._guide[bucket + 1] != magnitudes)
        magnitudes[several] = np.searchsorted(self._firsts, first[several], side="right")
        return magnitudes

    def _is_undecided(self, magnitudes: Integers, first: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which draws are undecided: their bits equal those of a boundary, or of the end."""
        at_end = magnitudes == len(self._firsts)
        return np.asarray(at_end | (self._firsts[np.maximum(magnitudes, 1) - 1] == first))

    def _resolve(self, number: int, randomness: Randomness) -> int:
        """Return the magnitude of a draw that its first bits do not decide."""
        bits, precision = self.word, PRECISION
        while True:
            number = (number << (precision - bits)) | _draw_bits(precision - bits, randomness)
            bits = precision
            boundaries = _compute_cumulative(self.kind, self.scale, precision)
            index = bisect_right(boundaries, number)
            if index < len(boundaries) and (not index or number >= boundaries[index - 1] + ERROR):
                return index
            precision *= 2


@lru_cache(maxsize=16)
def get_exact_sampler(kind: NoiseKind, scale: float) -> ExactSampler:
    """Return a cached :class:`ExactSampler`, whose table takes a tenth of a second to build."""
    return ExactSampler(kind, scale)


def _compute_first_bits(kind: NoiseKind, scale: float, word: int) -> NDArray[np.uint64]:
    """Return the first bits of each ``P(|k| ≤ m)``, up to the first that is all ones."""
    precision, last = PRECISION, (1 << word) - 1
    while True:
        shift, firsts = precision - word, []
        for boundary in _compute_cumulative(kind, scale, precision):
            firsts.append(boundary >> shift)
            # If the error reaches these bits, more precision is needed.
            if firsts[-1] == last or firsts[-1] != (boundary + ERROR) >> shift:
                break
        if firsts[-1] == last:
            return np.array(firsts, np.uint64)
        precision *= 2


@lru_cache(maxsize=2)
def _compute_cumulative(kind: NoiseKind, scale: float, precision: int) -> list[int]:
    """Return ``2^precision · P(|k| ≤ m)`` for m = 0, 1, …, until it is nearly 1.

    From below: each value is too small by more than 0 and less than :data:`ERROR`.
    """
    weights = _compute_weights(kind, scale, precision + GUARD)
    sums = list(accumulate(weights))
    # The weights omitted beyond the last one are below the guard bits' error.
    return [(each << precision) // sums[-1] - 1 for each in sums]


def _compute_weights(kind: NoiseKind, scale: float, bits: int) -> list[int]:
    """Return ``2^bits · exp(…)`` of each magnitude m, up to a factor, until it is 0.

    Weights are multiplied up: the ratio of neighbours is ``q = e^(−1/b)``, or
    ``e^(−(2m+1)/2σ²)``, which itself shrinks by ``e^(−1/σ²)`` per step. Each product is rounded by
    less than one unit, so the last of M weights is off by less than M² units and their sum by M³:
    2⁶⁰ units for a million.
    """
    exact = Fraction(scale)
    if kind == "laplace":
        ratio, shrinks = _compute_exponential(-1 / exact, bits), 1 << bits
    else:
        ratio, shrinks = (_compute_exponential(-1 / (part * exact**2), bits) for part in (2, 1))
    weight, weights = 1 << bits, [1 << (bits - 1)]  # zero has only one sign
    while weight := (weight * ratio) >> bits:
        weights.append(weight)
        ratio = (ratio * shrinks) >> bits
    return weights


def _compute_exponential(power: Fraction, bits: int) -> int:
    """Return ``⌊2^bits · e^power⌋`` to within one unit, for a power below 0."""
    context = Context(prec=bits // 3 + 10)
    exact = context.divide(Decimal(power.numerator), Decimal(power.denominator))
    return int(context.multiply(context.exp(exact), Decimal(1 << bits)))


def _draw_bits(count: int, randomness: Randomness) -> int:
    return int.from_bytes(randomness.bytes(-(-count // 8)), "little") >> (-count % 8)
