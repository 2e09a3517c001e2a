"""The public grid of a mechanism, which releases whole numbers of steps.

The bounded function of an example is rounded to whole steps so that its norm stays exactly within
the bound, and the noise is a whole number of steps, drawn exactly
(:mod:`pudica.clients.shields.discrete`). So proofs about integers hold for what is released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pudica.clients.shields.discrete import NoiseKind

MAX_FEATURES = 2**20
"""The largest number of features of an example for which :func:`slack` is small."""
MIN_SIGMA = 4_000.0
"""The smallest σ of a discrete Gaussian in steps: :func:`slack` falls with its square."""
SHARE = 2e-6
"""The share of δ that :func:`slack` uses up."""
MIN_LEVELS = 4
REACH: dict[NoiseKind, float] = {"gaussian": 6.2, "laplace": 22.0}
"""Noise is further from its mean than this many scales once in some billion draws."""
LARGEST_INTEGER = {"int16": 2**15 - 1, "int32": 2**21}
"""Released integers are clamped to these. A float32 holds all whole steps up to here."""
SHRINK = 1 - 2.0**-12


@dataclass(frozen=True)
class IntegerGrid:
    """A grid and the noise on it.

    Attributes
    ----------
    step : float
        In the units of the released values.
    levels, scale : int, float
        The maximum norm of an example, and the noise's σ or b; in steps.
    dtype : {"int16", "int32"}
        The type in which the integers are sent.
    """

    step: float
    levels: int
    scale: float
    dtype: Literal["int16", "int32"]

    @classmethod
    def of(cls, kind: NoiseKind, norm: float, unit: float) -> IntegerGrid:
        """Return the finest grid on which the noise fits 16 bits, or a finer one if necessary.

        ``norm`` is the maximum norm of an example, half the sensitivity; ``unit`` is σ or b for a
        sensitivity of 1. ValueError if with so little noise the grid would need too many steps.
        """
        least = MIN_LEVELS
        if kind == "gaussian":
            least = max(least, math.ceil(MIN_SIGMA / (2 * unit)))
        room = 1 + 2 * REACH[kind] * unit
        levels = max(least, math.floor(LARGEST_INTEGER["int16"] / room))
        if levels > LARGEST_INTEGER["int32"]:
            raise ValueError(f"noise of {unit:g} for a sensitivity of 1 is too little for a grid")
        small = levels * room <= LARGEST_INTEGER["int16"] + 1
        # Rounded up, so that the noise is never less than requested.
        scale = math.nextafter(2 * levels * unit, math.inf)
        return cls(norm / levels, levels, scale, "int16" if small else "int32")

    def to_integers(self, tensor: torch.Tensor) -> np.ndarray:
        """Return values on this grid as the integers that are sent."""
        return self.clamp(torch.round(tensor.double() / self.step).cpu().numpy())

    def clamp(self, integers: np.ndarray) -> np.ndarray:
        """Clamp integers to the type they are sent in; post-processing costs no privacy."""
        most = LARGEST_INTEGER[self.dtype]
        return np.asarray(np.clip(integers, -most, most).astype(self.dtype))

    def to_values(self, integers: np.ndarray) -> torch.Tensor:
        """Return the values that integers stand for, as float32."""
        return torch.from_numpy(integers.astype(np.float64) * self.step).float()


def round_rows(rows: torch.Tensor, order: int, most: int) -> torch.Tensor:
    """Round rows to whole numbers whose L1 or L2 norm is at most ``most``, exactly.

    Each row is rounded independently of the others.

    Parameters
    ----------
    rows : float64 tensor of shape (B, F)
    order : {1, 2}
    """
    rows = torch.nan_to_num(rows).clamp(-most, most)
    return _round_keeping_sum(rows, most) if order == 1 else _shrink_to_fit(rows, 2, most)


def _round_keeping_sum(rows: torch.Tensor, most: int) -> torch.Tensor:
    """Round so that the L1 norm is kept: the entries with the largest remainders are rounded up.

    Rounding to the nearest would lose all small entries.
    """
    sizes = rows.abs()
    whole = sizes.floor()
    total = sizes.sum(1).round().clamp(max=most)
    missing = (total - whole.sum(1)).clamp(min=0).long()
    steps = (whole + _mask_largest(sizes - whole, missing[:, None])).long()
    # Floating-point errors may leave a row too long; it is shrunk instead.
    steps = torch.where(steps.sum(1, keepdim=True) > most, _shrink_to_fit(whole, 1, most), steps)
    return steps * rows.sign().long()


def _mask_largest(rows: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Mask the ``number`` largest entries of each row; of equal ones, the first."""
    ordered = rows.sort(dim=1, descending=True).values
    least = ordered.gather(1, (number - 1).clamp(min=0))
    above, equal = rows > least, rows == least
    room = number - above.sum(1, keepdim=True)
    return above & (number > 0) | equal & (equal.cumsum(1) <= room)


def _shrink_to_fit(rows: torch.Tensor, order: int, most: int) -> torch.Tensor:
    """Round rows to the nearest integers, shrinking them until none is too long."""
    steps, rows = rows.round().long(), rows.clone()
    long = torch.arange(len(rows), device=rows.device)
    while len(long := long[_compute_size(steps[long], order) > most**order]):
        norms = _compute_size(steps[long], order).double() ** (1 / order)
        rows[long] *= (SHRINK * most / norms)[:, None]
        steps[long] = rows[long].round().long()
    return steps


def _compute_size(rows: torch.Tensor, order: int) -> torch.Tensor:
    """Return each row's sum of absolute values (order 1) or of squares (order 2)."""
    return rows.abs().pow(order).sum(1)


def slack(count: int, epsilon: float, delta: float) -> float:
    """Return how much larger the ε of discrete Gaussian noise may be than that of continuous noise.

    Rounding a Gaussian of the same σ to integers gives another integer noise, which keeps the
    (ε, δ) of the Gaussian mechanism, since rounding is post-processing. The discrete Gaussian is
    close to that: for a vector k with F entries, their probabilities have the ratio e^±η with
    ``η ≤ |Σk²/σ² − F|/24σ² + (S/192 + a·S/2880 + F/500)/σ⁴`` (by ``1 ≤ sinh(x)/x ≤ e^(x²/6)``),
    except on a set of probability τ. With ``2τ ≤ 8e^−t`` we have
    ``|Σk²/σ² − F| ≤ 2√(Ft) + 2t`` (Laurent and Massart 2000), ``S = F + 2√(Ft) + 2t`` and
    ``k² ≤ aσ²``, ``a = 2(t + ln 2F)``. So the discrete Gaussian keeps ``ε + 2η`` with
    ``δ·e^η + (1 + e^(ε+η))τ``. The noise is independent of what it is added to, so this holds for
    adaptive releases together.

    Parameters
    ----------
    count : int
        Releases of at most :data:`MAX_FEATURES` entries each, with σ of at least
        :data:`MIN_SIGMA`.
    epsilon, delta : float
        Rough values for the continuous noise; ε must not be too small.

    Returns
    -------
    float
        2η. The part of δ that τ takes is below :data:`SHARE`.
    """
    t = epsilon + 2 + math.log(8 / (SHARE * delta))
    features, square = float(MAX_FEATURES) * count, MIN_SIGMA**2
    spread = 2 * math.sqrt(features * t) + 2 * t
    fourth = (features + spread) * (1 / 192 + 2 * (t + math.log(2 * features)) / 2880)
    return 2 * (spread / (24 * square) + (fourth + features / 500) / square**2)


def delta_within_slack(delta: float, extra: float) -> float:
    """Return the δ of continuous noise for which discrete noise with this slack keeps ``delta``."""
    return delta * math.exp(-extra) * (1 - SHARE)
