"""Compose many releases of the same record, and calibrate noise to a budget.

Neighbours have the same size; one of them has a record replaced. The mechanisms' sensitivities
count both the old record and the new one, so the distance is never doubled here. Where
dp-accounting asks for a relation, Gaussian noise uses REPLACE_SPECIAL, because its REPLACE_ONE
doubles the distance in privacy loss distributions (though not in RDP).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scipy.optimize import brentq

from pudica.clients.shields import RECORD_LEVEL, Guarantee, Mechanism, Shape, ShieldConfig, build
from pudica.clients.shields.analytic import discrete_epsilon, discrete_sigma
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import delta_within_slack, slack
from pudica.models.errors import RequestError

LARGEST = 50.0
"""A release with a larger ε is only added up.

Beyond it randomised response lies once in 10²¹ releases, so composition is no better than the
sum; and a grid over such losses needs millions of points, and overflows (e^ε) from 709 on.
"""
POINTS = 100_000
"""Points of the grid of privacy losses; it bounds memory and time."""
ROUNDING = 1e-12
"""The part of δ reserved for rounding errors of the Fourier transforms that convolve losses."""
GAIN = 1e-4
"""A δ > 0 is spent only if it makes ε smaller by this share."""
PRECISION = 1e-9
"""Precision of a search for ε; the result is rounded up by twice that."""
TOLERANCE = 1e-6
"""How far below the budget a calibration may end, as a share."""


class Cost(NamedTuple):
    """The privacy cost of one release for a record; ``kind`` is None if there is no guarantee.

    ``ratio`` is the sensitivity over the noise's scale; for Laplace noise this is ε.
    """

    kind: NoiseKind | None
    ratio: float = 0.0

    @classmethod
    def of(cls, mechanism: Mechanism) -> Cost:
        """Return the cost of one release by a mechanism."""
        if mechanism.guarantee().epsilon is None:
            return cls(None)
        ratio = (mechanism.sensitivity or 0.0) / mechanism.scale
        if not 0 < ratio < math.inf:
            raise RequestError(f"a release can't be accounted for: it costs {ratio:g}")
        return cls(mechanism.kind, ratio)


TOO_MANY = "so many releases on a grid that their discrete noise is not accounted for any more"


class ReleaseTotals(NamedTuple):
    """All releases of one record, summed up.

    Attributes
    ----------
    ratio : float
        Sensitivity over σ of the one Gaussian release that reveals as much as all ``gaussians``
        of them; 0 if there are none.
    pure : list of (float, int)
        ε and number of the releases with Laplace noise.
    """

    ratio: float
    pure: list[tuple[float, int]]
    gaussians: int = 1

    @classmethod
    def of(cls, costs: Iterable[tuple[Cost, int]]) -> ReleaseTotals:
        """Return the totals of releases with these costs and counts."""
        squares, gaussians, pure = 0.0, 0, Counter[float]()
        for cost, count in costs:
            if cost.kind == "gaussian":
                squares += count * cost.ratio**2
                gaussians += count
            else:
                pure[cost.ratio] += count
        return cls(math.sqrt(squares), list(pure.items()), gaussians)

    @property
    def pure_epsilon(self) -> float:
        """The sum of the ε of all Laplace releases."""
        return sum(epsilon * count for epsilon, count in self.pure)

    def gaussian_epsilon(self, delta: float) -> float:
        """Return the ε of the Gaussian releases."""
        return discrete_epsilon(1 / self.ratio, delta, self.gaussians) if self.ratio else 0.0


def compose_releases(releases: Sequence[tuple[Mechanism, int]], delta: float) -> Guarantee:
    """Return the guarantee of a record released by several mechanisms, each ``count`` times.

    Gaussian releases together reveal as much as a single one whose squared ratio of sensitivity
    and σ is the sum of theirs (Dong, Roth and Su 2019, Corollary 3.3). Its ε is known exactly;
    the difference to discrete noise (:func:`pudica.clients.shields.grid.slack`) is added.
    The ε of Laplace releases add up. For δ > 0 the total is smaller: no ε-private release reveals
    more than randomised response (Kairouz, Oh and Viswanath 2015), whose privacy loss
    distributions are composed. All of this holds for adaptive releases.

    Parameters
    ----------
    releases : sequence of (Mechanism, int)
        In the mode in which they release: running statistics of batch norm bound nothing.
    delta : float
        The δ of all releases together, whatever their own.

    Returns
    -------
    Guarantee
        Of one record. ``epsilon`` is None if that of any release is; the reasons are then theirs.
        δ is 0 if it does not lower ε.

    Raises
    ------
    RequestError
        For a count below 1, or a δ that is not between 0 and 1.
    """
    guarantees = [mechanism.guarantee() for mechanism, _ in releases]
    if unprotected := [each for each in guarantees if each.epsilon is None]:
        _validate_budget(delta, (count for _, count in releases))
        return Guarantee("record", None, reasons=_unique_reasons(g.reasons for g in unprotected))
    reasons = _unique_reasons(mechanism.assumptions() for mechanism, _ in releases)
    epsilon, delta = compose_costs(
        [(Cost.of(mechanism), count) for mechanism, count in releases], delta
    )
    if math.isinf(epsilon):
        return Guarantee("record", None, reasons=(TOO_MANY,))
    return Guarantee("record", epsilon, delta, reasons)


def compose_costs(costs: Iterable[tuple[Cost, int]], delta: float) -> tuple[float, float]:
    """Return (ε, δ) of releases with these costs and counts; see :func:`compose_releases`.

    ε is infinite if a release has no guarantee. δ is 0 if it does not lower ε.
    """
    costs = list(costs)
    _validate_budget(delta, (count for _, count in costs))
    if any(cost.kind is None for cost, _ in costs):
        return math.inf, delta
    parts = ReleaseTotals.of(costs)
    added = parts.gaussian_epsilon(delta) + parts.pure_epsilon
    tight = _compose_by_pld(parts, delta)
    if tight < added * (1 - GAIN):
        return tight, delta
    return added, delta if parts.ratio else 0.0


def compose_rdp(releases: Sequence[tuple[Mechanism, int]], delta: float) -> float | None:
    """Return the ε by Rényi DP, a looser second opinion; None if there is no finite one."""
    _validate_budget(delta, (count for _, count in releases))
    costs = [(Cost.of(mechanism), count) for mechanism, count in releases]
    if any(cost.kind is None for cost, _ in costs):
        return None
    parts = ReleaseTotals.of(costs)
    apart = _compose_by_rdp(ReleaseTotals(parts.ratio, []), delta) + parts.pure_epsilon
    return min(_compose_by_rdp(parts, delta), apart)


def calibrate(
    config: ShieldConfig, epsilon: float, delta: float, count: int, shape: Shape, batch: int
) -> ShieldConfig:
    """Return a shield's settings for which ``count`` releases of a record keep within a budget.

    Parameters
    ----------
    config : ShieldConfig
        Settings of clip-gaussian or clip-laplace; their ε and δ are ignored.
    epsilon, delta : float
        The budget of all releases of a record together.

    Returns
    -------
    ShieldConfig
        With the ε (and δ, if it has one) of a single release. All together are never above the
        budget, and less than a thousandth below.

    Raises
    ------
    RequestError
        For an invalid budget, or a shield whose noise is not calibrated to a record.
    """
    if config.name not in RECORD_LEVEL:
        raise RequestError(
            f"shield '{config.name}': its ε is not a record's, so a record has no budget there; "
            f"allowed: {', '.join(RECORD_LEVEL)}"
        )
    _validate_budget(delta, [count])
    if not 0 < epsilon < math.inf:
        raise RequestError(f"epsilon: a budget must be a finite number above 0, got {epsilon:g}")
    if hasattr(config, "delta"):
        # √count times the σ that a single release would need. Any point on that σ's (ε, δ) curve
        # would do. At δ/count there is always an ε above 0; at δ there may be none.
        try:
            sigma = discrete_sigma(epsilon * (1 - TOLERANCE), delta, count)
        except ValueError as error:
            raise RequestError(str(error)) from error
        single_epsilon = discrete_epsilon(sigma, delta / count)
        return config.model_copy(update={"epsilon": single_epsilon, "delta": delta / count})

    def total_epsilon(single: float) -> float:
        shield = build(config.model_copy(update={"epsilon": single}), shape, batch)
        assert isinstance(shield, Mechanism)
        return compose_releases([(shield, count)], delta).epsilon or 0.0

    low = epsilon / count * (1 - TOLERANCE)
    high = 2 * low
    while total_epsilon(high) <= epsilon:
        low, high = high, 2 * high
    while high - low > TOLERANCE * low:
        middle = (low + high) / 2
        low, high = (middle, high) if total_epsilon(middle) <= epsilon else (low, middle)
    return config.model_copy(update={"epsilon": low})


def _validate_budget(delta: float, counts: Iterable[int]) -> None:
    if not 0 < delta < 1:
        raise RequestError(f"delta: must be between 0 and 1, got {delta:g}")
    if any(count < 1 for count in counts):
        raise RequestError("count: a record must be released at least once to be accounted for")


def _compose_by_rdp(parts: ReleaseTotals, delta: float) -> float:
    import dp_accounting

    # This relation is for randomised response; in RDP it does not double the Gaussian distance.
    accountant = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    if parts.ratio:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / parts.ratio))
    for epsilon, count in parts.pure:
        lie = math.exp(-epsilon) / (1 + math.exp(-epsilon))
        accountant.compose(dp_accounting.RandomizedResponseDpEvent(2 * lie, 2), count)
    return float(accountant.get_epsilon(delta))


def _compose_by_pld(parts: ReleaseTotals, delta: float) -> float:
    """Return ε by composing privacy loss distributions; infinity where that gains nothing."""
    epsilons = [parts.gaussian_epsilon(delta), *(epsilon for epsilon, _ in parts.pure)]
    is_single = not parts.ratio and sum(count for _, count in parts.pure) == 1
    if not parts.pure or is_single or max(epsilons) > LARGEST:
        return math.inf
    total, *others = _build_loss_distributions(parts)
    for other in others:
        total = total.compose(other)
    most = parts.gaussian_epsilon(delta) + parts.pure_epsilon
    extra = slack(parts.gaussians, most, delta) if parts.ratio else 0.0
    return _find_smallest_epsilon(total, delta_within_slack(delta, extra) - ROUNDING, most) + extra


def _find_smallest_epsilon(losses: Any, delta: float, most: float) -> float:
    """Return the smallest ε for a δ; infinity if it is above ``most``.

    The distributions' own search is not used: it computes e^−ε, which loses precision from
    ε = 700 on.
    """

    def above(epsilon: float) -> float:
        return float(losses.get_delta_for_epsilon(epsilon)) - delta

    if above(0.0) <= 0:
        return 0.0
    if above(most) > 0:
        return math.inf
    least = brentq(above, 0.0, most, xtol=PRECISION * most, rtol=PRECISION)
    return float(least) + 2 * PRECISION * most


def _build_loss_distributions(parts: ReleaseTotals) -> list[Any]:
    # Not by dp-accounting's PLDAccountant: it composes randomised response once, whatever the
    # count (0.6.0), and does not support ε-private mechanisms in general.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import common, privacy_loss_distribution

    step = _choose_loss_interval(parts)
    distributions = [
        privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(epsilon), value_discretization_interval=step
        ).self_compose(count)
        for epsilon, count in parts.pure
    ]
    if parts.ratio:
        gaussian = privacy_loss_distribution.from_gaussian_mechanism(
            1 / parts.ratio,
            value_discretization_interval=step,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )
        distributions.append(gaussian)
    return distributions


def _choose_loss_interval(parts: ReleaseTotals) -> float:
    """Return the step of the grid of privacy losses; rounding up to it is pessimistic.

    Randomised response with a single ε has only the losses ±ε, so their sums lie on a grid of ε.
    Other grids are as fine as :data:`POINTS` allows, and contain the largest ε.
    """
    largest = max(epsilon for epsilon, _ in parts.pure)
    if not parts.ratio and all(epsilon == largest for epsilon, _ in parts.pure):
        return largest
    # Losses of Gaussian noise are truncated ten standard deviations from their mean.
    finest = (20 * parts.ratio + 2 * parts.pure_epsilon) / POINTS
    return largest / (largest // finest) if largest > finest else finest


def _unique_reasons(reasons: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for each in reasons for reason in each))
