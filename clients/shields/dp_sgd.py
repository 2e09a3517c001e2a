"""DP-SGD (Abadi et al. 2016): its settings, and the noise that a budget needs.

Neighbours differ in one record that is added or removed. With one replaced instead, the same noise
has a larger ε, see :func:`compute_epsilon`. The number of examples counts as public.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pudica.models.errors import RequestError

RELATION = "add-or-remove-one"
INTERVAL = 1e-3
"""Step of the grid of privacy losses; rounding to it is pessimistic."""
PRECISION = 1e-3
"""How far above the smallest multiplier a calibrated one may be, as a share."""
LARGEST_MULTIPLIER = 1e4


class DpSgdConfig(BaseModel):
    """How each owner's training is made differentially private.

    Attributes
    ----------
    epsilon : float
        The ε of one record over all rounds together, if it is added or removed.
    delta : float
        The δ that belongs to it.
    clip : float
        The L2 norm that each example's gradient is clipped to.
    noise : {"seeded", "secret"}
        Whether batches and noise come from the run's seed, to be repeated, or from a key that the
        owner draws from the system's randomness and keeps in its vault.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    noise: Literal["seeded", "secret"] = "seeded"


def count_steps(examples: int, batch_size: int) -> int:
    """Return how many steps make an epoch."""
    return math.ceil(examples / batch_size)


def compute_epsilon(
    multiplier: float,
    rate: float,
    steps: int,
    delta: float,
    relation: Literal["add-or-remove-one", "replace-one"] = "add-or-remove-one",
) -> float:
    """Return the ε of a record in DP-SGD, in real numbers.

    Parameters
    ----------
    multiplier : float
        The noise's standard deviation over the clipping norm.
    rate : float
        The probability with which a step draws an example.
    steps : int
        Of all rounds together.
    """
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    relations = dp_accounting.NeighboringRelation
    neighbours = (
        relations.ADD_OR_REMOVE_ONE if relation == "add-or-remove-one" else relations.REPLACE_ONE
    )
    accountant = PLDAccountant(neighbours, INTERVAL)
    gaussian = dp_accounting.GaussianDpEvent(multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def calibrate_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the smallest noise multiplier, to a thousandth, that keeps within (ε, δ).

    Arguments are as of :func:`compute_epsilon`.

    Raises
    ------
    RequestError
        No multiplier up to :data:`LARGEST_MULTIPLIER` is enough.
    """
    low = high = 1.0
    while compute_epsilon(high, rate, steps, delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST_MULTIPLIER:
            raise RequestError(
                f"dp: no noise keeps {steps} steps within ε = {epsilon:g}; "
                "train for fewer epochs, or allow a larger epsilon"
            )
    while low == high and compute_epsilon(low / 2, rate, steps, delta) <= epsilon:
        low = high = low / 2
    low = min(low, high / 2)
    while high - low > PRECISION * low:
        middle = (low + high) / 2
        fits = compute_epsilon(middle, rate, steps, delta) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return high
