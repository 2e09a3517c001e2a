"""Mechanisms on a public grid: what is released are whole numbers of steps.

The bounded function of an example is rounded to whole steps, in such a way that its norm stays
within the bound, exactly; noise is a whole number of steps, drawn exactly
(:mod:`pudica.clients.shields.discrete`). So what is proven of integers is true of what leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pudica.clients.shields.discrete import NoiseKind

MAX_FEATURES = 2**20
"""Of one example: for so many, :func:`slack` is small."""
MIN_SIGMA = 4_000.0
"""Steps of a discrete Gaussian's σ, at least: :func:`slack` falls with their square."""
SHARE = 2e-6
"""Of δ, which :func:`slack` uses up."""
MIN_LEVELS = 4
REACH: dict[NoiseKind, float] = {"gaussian": 6.2, "laplace": 22.0}
"""So many scales from its mean, noise lies once in some billion draws."""
LARGEST_INTEGER = {"int16": 2**15 - 1, "int32": 2**21}
"""What is beyond it is cut off. A float32 tells whole numbers of steps apart up to here."""
SHRINK = 1 - 2.0**-12


@dataclass(frozen=True)
class IntegerGrid:
    """A grid, and the noise on it.

    Attributes
    ----------
    step : float
        Of what is released, in its own units.
    levels : int
        The norm that an example has at most, in steps.
    scale : float
        The noise's σ or b, in steps.
    dtype : {"int16", "int32"}
        In which the integers travel.
    """

    step: float
    levels: int
    scale: float
    dtype: Literal["int16", "int32"]

    @classmethod
    def of(cls, kind: NoiseKind, norm: float, unit: float) -> IntegerGrid:
        """Return the finest grid that has room for the noise in 16 bits, if that is fine enough.

        Parameters
        ----------
        norm : float
            What an example's is at most.
        unit : float
            σ or b for a sensitivity of 1. That of two examples is twice the norm.

        Raises
        ------
        ValueError
            If there is so little noise that it would need more steps than there are.
        """
        least = MIN_LEVELS
        if kind == "gaussian":
            least = max(least, math.ceil(MIN_SIGMA / (2 * unit)))
        room = 1 + 2 * REACH[kind] * unit
        levels = max(least, math.floor(LARGEST_INTEGER["int16"] / room))
        if levels > LARGEST_INTEGER["int32"]:
            raise ValueError(f"noise of {unit:g} for a sensitivity of 1 is too little for a grid")
        small = levels * room <= LARGEST_INTEGER["int16"] + 1
        # Upwards: the noise is never less than was asked for.
        scale = math.nextafter(2 * levels * unit, math.inf)
        return cls(norm / levels, levels, scale, "int16" if small else "int32")

    def to_integers(self, tensor: torch.Tensor) -> np.ndarray:
        """Return values of this grid as the integers that travel."""
        return self.clamp(torch.round(tensor.double() / self.step).cpu().numpy())

    def clamp(self, integers: np.ndarray) -> np.ndarray:
        """Return integers as they travel; what is done to noisy ones costs no privacy."""
        most = LARGEST_INTEGER[self.dtype]
        return np.asarray(np.clip(integers, -most, most).astype(self.dtype))

    def to_values(self, integers: np.ndarray) -> torch.Tensor:
        """Return what integers stand for, as float32."""
        return torch.from_numpy(integers.astype(np.float64) * self.step).float()


def round_rows(rows: torch.Tensor, order: int, most: int) -> torch.Tensor:
    """Return rows of whole numbers whose norm is at most ``most``, exactly.

    Each row depends on itself alone.

    Parameters
    ----------
    rows : Tensor of shape (B, F), float64
    order : {1, 2}
        Of the norm.
    """
    rows = torch.nan_to_num(rows).clamp(-most, most)
    return _round_keeping_sum(rows, most) if order == 1 else _shrink_to_fit(rows, 2, most)


def _round_keeping_sum(rows: torch.Tensor, most: int) -> torch.Tensor:
    """Round so that the absolute values' sum stays what it was: the largest remainders get one.

    To the nearest, small entries would all be lost.
    """
    sizes = rows.abs()
    whole = sizes.floor()
    total = sizes.sum(1).round().clamp(max=most)
    left = (total - whole.sum(1)).clamp(min=0).long()
    found = (whole + _mask_largest(sizes - whole, left[:, None])).long()
    # Of a row that is too long as it is, nothing may be added; floating point may see it so.
    found = torch.where(found.sum(1, keepdim=True) > most, _shrink_to_fit(whole, 1, most), found)
    return found * rows.sign().long()


def _mask_largest(rows: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Tell which are the largest of each row, so many; of equal ones the first."""
    ordered = rows.sort(dim=1, descending=True).values
    least = ordered.gather(1, (number - 1).clamp(min=0))
    above, equal = rows > least, rows == least
    room = number - above.sum(1, keepdim=True)
    return above & (number > 0) | equal & (equal.cumsum(1) <= room)


def _shrink_to_fit(rows: torch.Tensor, order: int, most: int) -> torch.Tensor:
    """Return rows rounded to the nearest, shrunk until that makes none too long."""
    found, rows = rows.round().long(), rows.clone()
    left = torch.arange(len(rows), device=rows.device)
    while len(left := left[_compute_size(found[left], order) > most**order]):
        norms = _compute_size(found[left], order).double() ** (1 / order)
        rows[left] *= (SHRINK * most / norms)[:, None]
        found[left] = rows[left].round().long()
    return found


def _compute_size(rows: torch.Tensor, order: int) -> torch.Tensor:
    """Return the sum of absolute values, or of squares, of rows of integers."""
    size: torch.Tensor = rows.abs().sum(1) if order == 1 else rows.square().sum(1)
    return size


def slack(count: int, epsilon: float, delta: float) -> float:
    """Return what the ε of discrete Gaussian noise may be above that of the continuous one.

    Rounding a Gaussian of the same σ to integers gives another integer noise, which keeps the
    (ε, δ) of the Gaussian mechanism, since rounding looks at nothing but what is released. The
    discrete Gaussian is close to that: their probabilities of a vector k with F entries have the
    ratio e^±η, where ``η ≤ |Σk²/σ² − F|/24σ² + (S/192 + a·S/2880 + F/500)/σ⁴`` (by
    ``1 ≤ sinh(x)/x ≤ e^(x²/6)``), but for a set of probability τ: with ``2τ ≤ 8e^−t`` is
    ``|Σk²/σ² − F| ≤ 2√(Ft) + 2t`` (Laurent and Massart 2000), ``S = F + 2√(Ft) + 2t`` and
    ``k² ≤ aσ²``, ``a = 2(t + ln 2F)``. So the discrete one keeps ``ε + 2η`` for
    ``δ·e^η + (1 + e^(ε+η))τ``; noise is independent of what it is added to, so this holds for
    adaptive releases together.

    Parameters
    ----------
    count : int
        Releases, of :data:`MAX_FEATURES` entries each, under :data:`MIN_SIGMA` or more.
    epsilon, delta : float
        Of the continuous noise, roughly; ε rather too large.

    Returns
    -------
    float
        2η. τ's part of δ is below :data:`SHARE`.
    """
    t = epsilon + 2 + math.log(8 / (SHARE * delta))
    features, square = float(MAX_FEATURES) * count, MIN_SIGMA**2
    spread = 2 * math.sqrt(features * t) + 2 * t
    fourth = (features + spread) * (1 / 192 + 2 * (t + math.log(2 * features)) / 2880)
    return 2 * (spread / (24 * square) + (fourth + features / 500) / square**2)


def delta_within_slack(delta: float, extra: float) -> float:
    """Return the δ of continuous noise with which the discrete one keeps ``delta``.

    Parameters
    ----------
    extra : float
        As of :func:`slack`.
    """
    return delta * math.exp(-extra) * (1 - SHARE)
