"""What many releases of the same record add up to, and the noise that keeps within a budget.

Neighbours are of the same size, one of them has a record replaced, and the mechanisms'
sensitivities count both the record that goes and the one that comes. So the distance is never
doubled here: where dp-accounting asks for a relation, Gaussian noise is that of REPLACE_SPECIAL,
because its REPLACE_ONE doubles the distance in privacy loss distributions (though not in RDP).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from scipy.optimize import brentq

from pudica.clients.shields import RECORD_LEVEL, Guarantee, Mechanism, Shape, ShieldConfig, build
from pudica.clients.shields.analytic import discrete_epsilon, discrete_sigma
from pudica.clients.shields.discrete import NoiseKind
from pudica.clients.shields.grid import delta_within_slack, slack
from pudica.models.errors import RequestError

LARGEST = 50.0
"""Beyond this ε of its own, a part is only added up.

Randomised response then lies once in 10²¹ releases, so composition does not do better than the
sum; and a grid over such losses needs millions of points, and overflows (e^ε) from 709 on.
"""
POINTS = 100_000
"""Of the grid of privacy losses: what bounds memory and time."""
ROUNDING = 1e-12
"""Of δ, left to the rounding of the Fourier transforms that convolve privacy losses."""
GAIN = 1e-4
"""A δ > 0 is worth a smaller ε only if that is smaller by this part."""
PRECISION = 1e-9
"""Of an ε that is searched for; it is rounded up by twice that."""
TOLERANCE = 1e-6
"""How far below the budget a calibration may end."""


class Cost(NamedTuple):
    """What one release tells of a record.

    Attributes
    ----------
    kind : {"gaussian", "laplace"} or None
        The noise; None: it has no guarantee.
    ratio : float
        Sensitivity over the noise's scale: the ε, of Laplace noise.
    """

    kind: NoiseKind | None
    ratio: float = 0.0

    @classmethod
    def of(cls, mechanism: Mechanism) -> Cost:
        """Return what one release by a mechanism tells."""
        if _missing_guarantee(mechanism):
            return cls(None)
        ratio = (mechanism.sensitivity or 0.0) / mechanism.scale
        if not 0 < ratio < math.inf:
            raise RequestError(f"a release can't be accounted for: it costs {ratio:g}")
        return cls(mechanism.kind, ratio)


TOO_MANY = "so many releases on a grid that their discrete noise is not accounted for any more"
PureReleases = tuple[float, int]
"""The ε of one release that is ε-differentially private, and how many there are of it."""


class ReleaseTotals(NamedTuple):
    """Releases of one record, all together.

    Attributes
    ----------
    ratio : float
        Sensitivity over σ of one Gaussian release that tells as much as all of them; 0: none.
    pure : list of Pure
        The releases with Laplace noise.
    gaussians : int
        How many Gaussian releases there are.
    """

    ratio: float
    pure: list[PureReleases]
    gaussians: int = 1


def compose_repeated(mechanism: Mechanism, count: int, delta: float) -> Guarantee:
    """Return what holds for a record that is released several times; see :func:`compose_releases`.

    Parameters
    ----------
    mechanism : Mechanism
        In the mode in which it releases: statistics of batch normalisation bound nothing.
    count : int
        Releases of one record.
    delta : float
        Between 0 and 1.
    """
    return compose_releases([(mechanism, count)], delta)


def compose_releases(releases: Sequence[tuple[Mechanism, int]], delta: float) -> Guarantee:
    """Return what holds for a record that several mechanisms release, each so many times.

    Gaussian releases together tell what a single one does whose squared ratio of sensitivity
    and σ is the sum of theirs (Dong, Roth and Su 2019, Corollary 3.3), of which ε is known
    exactly; to it comes by how much discrete noise differs
    (:func:`pudica.clients.shields.grid.slack`).
    The ε of Laplace releases add up; for δ > 0 there is less: no ε-private release tells more
    than randomised response (Kairouz, Oh and Viswanath 2015), whose privacy loss distributions
    are composed. All of it holds if a release depends on the ones before.

    Parameters
    ----------
    releases : sequence of (Mechanism, int)
    delta : float
        One for all of them, whatever their own is.

    Returns
    -------
    Guarantee
        ``epsilon`` is None if that of any release is; the reasons are then theirs. δ is 0
        where it buys nothing.

    Raises
    ------
    RequestError
        For a count below 1, or a δ that is not between 0 and 1.
    """
    without = [g for mechanism, _ in releases if (g := _missing_guarantee(mechanism))]
    if without:
        _validate_budget(delta, (count for _, count in releases))
        return Guarantee("record", None, reasons=_unique_reasons(g.reasons for g in without))
    reasons = _unique_reasons(mechanism.assumptions() for mechanism, _ in releases)
    epsilon, delta = compose_costs(
        [(Cost.of(mechanism), count) for mechanism, count in releases], delta
    )
    if math.isinf(epsilon):
        return Guarantee("record", None, reasons=(TOO_MANY,))
    return Guarantee("record", epsilon, delta, reasons)


def compose_costs(costs: Iterable[tuple[Cost, int]], delta: float) -> tuple[float, float]:
    """Return (ε, δ) of releases that cost so much, each so many times; see :func:`compose_releases`.

    Returns
    -------
    (float, float)
        ε is infinite if one of them has no guarantee. δ is 0 where it buys nothing.
    """
    costs = list(costs)
    _validate_budget(delta, (count for _, count in costs))
    if any(cost.kind is None for cost, _ in costs):
        return math.inf, delta
    parts = _sum_releases(costs)
    added = _add_epsilons(parts, delta)
    tight = _compose_by_pld(parts, delta)
    if tight < added * (1 - GAIN):
        return tight, delta
    return added, delta if parts.ratio else 0.0


def compose_rdp(releases: Sequence[tuple[Mechanism, int]], delta: float) -> float | None:
    """Return the ε of :func:`compose_releases` by Rényi differential privacy: a looser, second opinion.

    None where there is none.
    """
    _validate_budget(delta, (count for _, count in releases))
    if any(_missing_guarantee(mechanism) for mechanism, _ in releases):
        return None
    parts = _sum_releases([(Cost.of(mechanism), count) for mechanism, count in releases])
    apart = _compose_by_rdp(ReleaseTotals(parts.ratio, []), delta) + _pure_epsilon(parts.pure)
    return min(_compose_by_rdp(parts, delta), apart)


def calibrate(
    config: ShieldConfig, epsilon: float, delta: float, count: int, shape: Shape, batch: int
) -> ShieldConfig:
    """Return a shield's settings for which so many releases of a record keep within a budget.

    Parameters
    ----------
    config : ShieldConfig
        Of clip-gaussian or clip-laplace; its own ε and δ do not matter.
    epsilon, delta : float
        What all releases of a record together may spend.
    count : int
        Releases of one record.
    shape : tuple of int
        Of one example.
    batch : int
        The most examples that are protected together.

    Returns
    -------
    ShieldConfig
        With the ε, and the δ if it has one, of a single release. :func:`compose_repeated` of it is
        never above the budget, and less than a thousandth below.

    Raises
    ------
    RequestError
        For a budget that is none, or a shield whose noise is not meant for a record.
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
        return config.model_copy(update=_gaussian_budget(epsilon, delta, count))

    def spent(single: float) -> float:
        shield = build(config.model_copy(update={"epsilon": single}), shape, batch)
        assert isinstance(shield, Mechanism)
        return compose_repeated(shield, count, delta).epsilon or 0.0

    return config.model_copy(update={"epsilon": _find_largest_epsilon(spent, epsilon, count)})


def _gaussian_budget(epsilon: float, delta: float, count: int) -> dict[str, float]:
    """Return ε and δ of a release with √count times the σ that a single one would need.

    Any point of that σ's curve of (ε, δ) would do. At δ/count there always is an ε above 0;
    at δ there may be none.
    """
    try:
        sigma = discrete_sigma(epsilon * (1 - TOLERANCE), delta, count)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return {"epsilon": discrete_epsilon(sigma, delta / count), "delta": delta / count}


def _find_largest_epsilon(spent: Callable[[float], float], budget: float, count: int) -> float:
    """Return the largest ε of a release with which all of them keep within the budget."""
    low = budget / count * (1 - TOLERANCE)
    high = 2 * low
    while spent(high) <= budget:
        low, high = high, 2 * high
    while high - low > TOLERANCE * low:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= budget else (low, middle)
    return low


def _validate_budget(delta: float, counts: Iterable[int]) -> None:
    if not 0 < delta < 1:
        raise RequestError(f"delta: must be between 0 and 1, got {delta:g}")
    if any(count < 1 for count in counts):
        raise RequestError("count: a record must be released at least once to be accounted for")


def _missing_guarantee(mechanism: Mechanism) -> Guarantee | None:
    """Return why a release has no finite ε, if so."""
    held = mechanism.guarantee()
    return held if held.epsilon is None else None


def _sum_releases(costs: Iterable[tuple[Cost, int]]) -> ReleaseTotals:
    squares, gaussians, pure = 0.0, 0, Counter[float]()
    for cost, count in costs:
        if cost.kind == "gaussian":
            squares += count * cost.ratio**2
            gaussians += count
        else:
            pure[cost.ratio] += count
    return ReleaseTotals(math.sqrt(squares), list(pure.items()), gaussians)


def _add_epsilons(parts: ReleaseTotals, delta: float) -> float:
    """Return the sum of all ε, with all of δ for the Gaussian one."""
    return _gaussian_epsilon(parts, delta) + _pure_epsilon(parts.pure)


def _gaussian_epsilon(parts: ReleaseTotals, delta: float) -> float:
    return discrete_epsilon(1 / parts.ratio, delta, parts.gaussians) if parts.ratio else 0.0


def _pure_epsilon(pure: Iterable[PureReleases]) -> float:
    return sum(epsilon * count for epsilon, count in pure)


def _compose_by_rdp(parts: ReleaseTotals, delta: float) -> float:
    import dp_accounting

    # The relation of randomised response; Gaussian noise is not doubled by it here.
    accountant = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    if parts.ratio:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / parts.ratio))
    for epsilon, count in parts.pure:
        wrong = math.exp(-epsilon) / (1 + math.exp(-epsilon))
        accountant.compose(dp_accounting.RandomizedResponseDpEvent(2 * wrong, 2), count)
    return float(accountant.get_epsilon(delta))


def _compose_by_pld(parts: ReleaseTotals, delta: float) -> float:
    """Return ε by composing privacy loss distributions; infinity where that gains nothing."""
    own = [_gaussian_epsilon(parts, delta), *(epsilon for epsilon, _ in parts.pure)]
    alone = not parts.ratio and sum(count for _, count in parts.pure) == 1
    if not parts.pure or alone or max(own) > LARGEST:
        return math.inf
    total, *others = _build_loss_distributions(parts)
    for other in others:
        total = total.compose(other)
    most = _add_epsilons(parts, delta)
    extra = slack(parts.gaussians, most, delta) if parts.ratio else 0.0
    return _find_smallest_epsilon(total, delta_within_slack(delta, extra) - ROUNDING, most) + extra


def _find_smallest_epsilon(losses: Any, delta: float, most: float) -> float:
    """Return the least ε for a δ; infinity if that is above ``most``.

    The distributions' own search is not used: it takes e^−ε for a number, which it is not to
    full precision from ε = 700 on.
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
    # Not by dp-accounting's PLDAccountant: it takes randomised response once, whatever the
    # count (0.6.0), and knows no ε-private mechanism in general.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import common, privacy_loss_distribution

    step = _choose_loss_interval(parts)
    found = [
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
        found.append(gaussian)
    return found


def _choose_loss_interval(parts: ReleaseTotals) -> float:
    """Return the distance of privacy losses on the grid; rounding up to it is pessimistic.

    Randomised response of one ε has the losses ±ε only, so its sums lie on a grid of ε. Other
    grids are as fine as :data:`POINTS` allow, and have the largest ε on them.
    """
    largest = max(epsilon for epsilon, _ in parts.pure)
    if not parts.ratio and all(epsilon == largest for epsilon, _ in parts.pure):
        return largest
    # Losses of Gaussian noise are cut off ten standard deviations from their mean.
    finest = (20 * parts.ratio + 2 * _pure_epsilon(parts.pure)) / POINTS
    return largest / (largest // finest) if largest > finest else finest


def _unique_reasons(reasons: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for each in reasons for reason in each))
