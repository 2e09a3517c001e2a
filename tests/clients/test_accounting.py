"""What many releases add up to, against closed forms that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from pudica.analysis.audit import audit
from pudica.clients.shields import SHIELDS, Guarantee, Mechanism, ShieldConfig, build
from pudica.clients.shields.accounting import (
    Cost,
    calibrate,
    compose_costs,
    compose_rdp,
    compose_releases,
)
from pudica.clients.shields.base import FLOATING_POINT_NOISE
from pudica.clients.shields.grid import delta_within_slack, slack
from pudica.clients.shields.integers import ClipGaussian
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness

DELTA = 1e-5


def config(name: str, **settings) -> ShieldConfig:
    return SHIELDS[name].schema.model_validate(settings)


def mechanism(name: str, shape: tuple[int, ...] = (16,), batch: int = 8, **settings) -> Mechanism:
    made = build(config(name, **settings), shape, batch)
    assert isinstance(made, Mechanism)
    return made


def compose_repeated(made: Mechanism, count: int, delta: float) -> Guarantee:
    return compose_releases([(made, count)], delta)


def gaussian_delta(ratio: float, epsilon: float) -> float:
    """Return δ of Gaussian noise: Theorem 8 of Balle and Wang 2018, for distance/σ = ratio."""
    left, right = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
    return float(stats.norm.cdf(left) - math.exp(epsilon + stats.norm.logcdf(right)))


def responses_delta(epsilon: float, single: float, count: int, ratio: float = 0.0) -> float:
    """Return δ of randomised responses with an ε each, along with Gaussian noise, if any.

    The number of lies is binomial, and each one turns a loss of ``single`` into its negative.
    """
    lies = np.arange(count + 1)
    weights = stats.binom.pmf(lies, count, 1 / (1 + math.exp(single)))
    left = epsilon - (count - 2 * lies) * single
    if ratio:
        return float(sum(w * gaussian_delta(ratio, e) for w, e in zip(weights, left, strict=True)))
    return float(weights @ -np.expm1(np.minimum(left, 0)))


def least_epsilon(delta_of, most: float, delta: float = DELTA) -> float:
    return float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0, most, xtol=1e-12))


def response_epsilon(single: float, count: int, delta: float = DELTA) -> float:
    return least_epsilon(lambda e: responses_delta(e, single, count), single * count, delta)


def gaussian_epsilon(ratio: float, delta: float = DELTA) -> float:
    return least_epsilon(lambda e: gaussian_delta(ratio, e), ratio**2 / 2 + 10 * ratio, delta)


def discreteness(ratio: float, count: int, delta: float = DELTA) -> float:
    """Return what the ε of so many discrete releases may be above that of continuous noise."""
    return slack(count, gaussian_epsilon(ratio, delta), delta)


# --------------------------------------------------------------------------- Gaussian


@pytest.mark.parametrize("count", [1, 7, 500])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_gaussian_releases_are_one_with_less_noise(epsilon: float, count: int) -> None:
    made = mechanism("clip-gaussian", epsilon=epsilon, clip=0.3)
    got = compose_repeated(made, count, DELTA)
    ratio = math.sqrt(count) * 0.6 / made.scale
    extra = discreteness(ratio, count)
    continuous = gaussian_delta(ratio, got.epsilon - extra)
    assert continuous == pytest.approx(delta_within_slack(DELTA, extra), rel=1e-5)
    assert continuous < DELTA
    assert (got.unit, got.relation, got.delta) == ("record", "replace-one", DELTA)
    if count == 1:
        assert got.epsilon == pytest.approx(epsilon)


@pytest.mark.parametrize(("epsilon", "count"), [(0.5, 1), (1.0, 40), (3.0, 5)])
def test_the_distance_of_a_replaced_record_is_not_doubled(epsilon: float, count: int) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    made = mechanism("clip-gaussian", epsilon=epsilon)
    event = dp_accounting.GaussianDpEvent(made.scale / made.sensitivity)
    relation = dp_accounting.NeighboringRelation
    found = {}
    for name in ("REPLACE_SPECIAL", "REPLACE_ONE"):
        accountant = PLDAccountant(relation[name])
        accountant.compose(event, count)
        found[name] = accountant.get_epsilon(DELTA)
    got = compose_repeated(made, count, DELTA).epsilon
    extra = discreteness(math.sqrt(count) * made.sensitivity / made.scale, count)
    assert got - extra == pytest.approx(found["REPLACE_SPECIAL"], rel=1e-4)
    assert got < 0.6 * found["REPLACE_ONE"]


# ---------------------------------------------------------------------------- Laplace


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 10.0, 49.0, 1e4])
def test_one_laplace_release_keeps_its_epsilon(epsilon: float) -> None:
    got = compose_repeated(mechanism("clip-laplace", epsilon=epsilon), 1, DELTA)
    assert got.epsilon == pytest.approx(epsilon)
    assert got.delta == 0


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(
    ("epsilon", "count"), [(0.01, 100), (0.1, 2_000), (1.0, 50), (1.0, 3_000), (3.0, 400)]
)
def test_laplace_releases_are_randomised_responses(
    epsilon: float, count: int, delta: float
) -> None:
    got = compose_repeated(mechanism("clip-laplace", epsilon=epsilon, clip=5), count, delta)
    exact = response_epsilon(epsilon, count, delta)
    # Never below, and above by rounding only.
    assert exact * (1 - 1e-9) < got.epsilon < exact * (1 + 1e-3)
    assert got.epsilon < epsilon * count
    assert got.delta == delta


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("delta", [0.2, 1e-2, DELTA])
def test_two_laplace_releases_are_within_what_is_said(epsilon: float, delta: float) -> None:
    # δ of two Laplace noises on distances of ε, integrated by hand.
    def exact(e: float) -> float:
        below = (epsilon - (e - epsilon)) / 2
        return 1 - math.exp(-below) * (1 + below / 2)

    got = compose_repeated(mechanism("clip-laplace", epsilon=epsilon), 2, delta)
    assert exact(got.epsilon) <= delta
    assert got.epsilon <= 2 * epsilon


@pytest.mark.parametrize(("epsilon", "count"), [(60.0, 1), (60.0, 1_000), (1e4, 1)])
def test_very_large_epsilons_add_up(epsilon: float, count: int) -> None:
    laplace = compose_repeated(mechanism("clip-laplace", epsilon=epsilon), count, DELTA)
    assert laplace.epsilon == pytest.approx(epsilon * count)
    made = mechanism("clip-gaussian", epsilon=epsilon)
    gaussian, ratio = (
        compose_repeated(made, count, DELTA).epsilon,
        2 * math.sqrt(count) / made.scale,
    )
    extra = discreteness(ratio, count)
    assert extra < 1e-4 * gaussian
    assert gaussian_delta(ratio, gaussian - extra) == pytest.approx(
        delta_within_slack(DELTA, extra), rel=1e-2
    )
    both = compose_releases(
        [(mechanism("clip-laplace", epsilon=epsilon), count), (made, count)], DELTA
    )
    assert both.epsilon == pytest.approx(laplace.epsilon + gaussian)


def test_where_discreteness_is_not_proven_to_be_little_nothing_is_said() -> None:
    got = compose_repeated(mechanism("clip-gaussian", epsilon=1e4), 1_000, DELTA)
    assert got.epsilon is None
    assert "not accounted for" in got.reasons[0]
    with pytest.raises(RequestError, match="too little for a grid"):
        mechanism("clip-gaussian", epsilon=1e6)


@pytest.mark.parametrize("name", ["pixel-laplace", "batch-norm-laplace", "norm-gaussian"])
def test_shields_of_the_papers_add_up_to_nothing_that_holds(name: str) -> None:
    made = mechanism(name, (3, 4, 4), epsilon=1)
    got = compose_repeated(made, 10, DELTA)
    assert got.epsilon is None
    assert got.reasons == made.guarantee().reasons
    assert got.reasons[0] == FLOATING_POINT_NOISE
    assert Cost.of(made) == Cost(None)
    assert compose_costs([(Cost.of(made), 10)], DELTA) == (math.inf, DELTA)
    assert compose_rdp([(made, 10)], DELTA) is None


def test_counts_add_up_as_laplace_noise_does() -> None:
    got = compose_repeated(mechanism("counts", (5,), epsilon=1.0), 50, DELTA)
    assert got.epsilon == pytest.approx(response_epsilon(1.0, 50), rel=1e-3)
    assert compose_repeated(
        mechanism("counts", (5,), epsilon=3.0), 1, DELTA
    ).epsilon == pytest.approx(3)


def test_costs_say_as_much_as_the_mechanisms_do() -> None:
    mechanisms = [
        mechanism("clip-laplace", epsilon=1.0, clip=4.0),
        mechanism("clip-gaussian", epsilon=2.0, delta=1e-3),
        mechanism("counts", (7,), epsilon=0.25),
    ]
    releases = [(made, 3) for made in mechanisms]
    costs = [(Cost.of(made), 3) for made in mechanisms]
    got = compose_releases(releases, DELTA)
    assert compose_costs(costs, DELTA) == (got.epsilon, got.delta)
    assert [cost.kind for cost, _ in costs] == ["laplace", "gaussian", "laplace"]
    assert costs[0][0].ratio == pytest.approx(1.0)
    assert costs[1][0].ratio == pytest.approx(2 / mechanisms[1].scale)
    assert costs[2][0].ratio == pytest.approx(0.25)
    assert compose_costs(
        [(cost, 1) for cost, _ in costs for _ in range(3)], DELTA
    ) == pytest.approx((got.epsilon, got.delta))


# ------------------------------------------------------------------------ of all kinds


@pytest.mark.parametrize(
    ("laplace", "count", "gaussian", "times"),
    [(1.0, 10, 2.0, 5), (0.1, 200, 1.0, 1), (3.0, 1, 0.5, 3), (0.01, 5, 8.0, 1)],
)
def test_kinds_of_noise_compose(laplace: float, count: int, gaussian: float, times: int) -> None:
    first = mechanism("clip-laplace", epsilon=laplace)
    second = mechanism("clip-gaussian", epsilon=gaussian)
    ratio = math.sqrt(times) * 2 / second.scale
    most = laplace * count + compose_repeated(second, times, DELTA).epsilon
    # Discrete Gaussian noise in the place of continuous one costs its slack here too.
    extra = slack(times, most, DELTA)
    exact = extra + least_epsilon(
        lambda e: responses_delta(e, laplace, count, ratio), most, delta_within_slack(DELTA, extra)
    )
    got = compose_releases([(first, count), (second, times)], DELTA)
    assert exact * (1 - 1e-6) <= got.epsilon < min(exact * 1.005, most * (1 + 1e-9))
    swapped = compose_releases([(second, times), (first, count)], DELTA)
    assert swapped.epsilon == pytest.approx(got.epsilon)


def test_the_same_release_in_parts_is_the_same() -> None:
    for name in ("clip-laplace", "clip-gaussian"):
        made = mechanism(name, epsilon=0.5)
        parts = compose_releases([(made, 10), (made, 30)], DELTA)
        assert parts.epsilon == pytest.approx(compose_repeated(made, 40, DELTA).epsilon)
        assert parts.reasons == made.guarantee().reasons


def test_a_little_noise_beside_a_lot_of_it_needs_no_finer_grid() -> None:
    # For so small an ε there is no shield, but for what several of them cost there may be.
    faint, loud = Cost("laplace", 1e-7), Cost.of(mechanism("clip-gaussian", epsilon=20))
    epsilon, delta = compose_costs([(faint, 3), (loud, 1)], DELTA)
    assert 20 <= epsilon < 20 * (1 + 1e-4)
    assert delta == DELTA


@pytest.mark.parametrize("count", [1, 10, 300])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_renyi_differential_privacy_is_looser(epsilon: float, count: int) -> None:
    for name in ("clip-laplace", "clip-gaussian"):
        releases = [(mechanism(name, epsilon=epsilon), count)]
        tight, loose = compose_releases(releases, DELTA).epsilon, compose_rdp(releases, DELTA)
        assert tight * (1 - 1e-4) < loose < 1.3 * tight


def test_renyi_differential_privacy_of_very_large_epsilons_is_their_sum() -> None:
    releases = [(mechanism("clip-laplace", epsilon=1e4), 3)]
    assert compose_rdp(releases, DELTA) == pytest.approx(3e4)
    both = [*releases, (mechanism("clip-gaussian", epsilon=1), 1)]
    assert 3e4 + 1 < compose_rdp(both, DELTA) < 3e4 + 1.2


def test_one_release_without_a_guarantee_spoils_all() -> None:
    good = mechanism("clip-gaussian", epsilon=1)
    bare = mechanism("clip-laplace", epsilon=None)
    running = mechanism("batch-norm-laplace", epsilon=1).eval()
    got = compose_releases([(good, 1), (bare, 1), (running, 2)], DELTA)
    assert got.epsilon is None
    assert got.reasons == ("no noise", "running statistics do not bound an activation")
    assert compose_rdp([(good, 1), (bare, 1)], DELTA) is None
    assert compose_repeated(running.train(), 2, DELTA).reasons[0] == FLOATING_POINT_NOISE


@pytest.mark.parametrize(
    ("count", "delta"), [(0, DELTA), (-1, DELTA), (1, 0), (1, 1), (1, math.nan)]
)
def test_what_is_no_composition_is_refused(count: int, delta: float) -> None:
    with pytest.raises(RequestError, match=r"count|delta"):
        compose_repeated(mechanism("clip-gaussian", epsilon=1), count, delta)


class Repeated(ClipGaussian):
    """Releases each example thirty times."""

    def _protect(self, tensor: torch.Tensor, randomness: Randomness) -> tuple[torch.Tensor, None]:
        return super()._protect(tensor.repeat_interleave(30, dim=0), randomness)

    def validate_shape(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float()  # thirty times its batch

    def noise_centres(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().noise_centres(tensor.repeat_interleave(30, dim=0))


def repeated(settings: ShieldConfig) -> Repeated:
    return Repeated(**settings.model_dump(exclude={"name"})).bind((16,), 1)


@pytest.mark.slow
def test_an_attack_on_all_releases_stays_within_the_budget() -> None:
    # Thirty releases with the noise of one are found out; those of the budget are not.
    single = config("clip-gaussian", epsilon=1.0, delta=1e-3)
    careless = audit(repeated(single), samples=8_000)
    assert careless.refutes(careless.guarantee)
    careful = calibrate(single, 1.0, 1e-3, 30, (16,), 1)
    budget = compose_repeated(build(careful, (16,), 1), 30, 1e-3)
    result = audit(repeated(careful), samples=8_000)
    assert result.could_refute(budget)
    assert not result.refutes(budget)
    assert result.lower_bound(1e-3) > 0.1  # it does see something


# ------------------------------------------------------------------------------ budgets

BUDGETS = [
    (3.0, 1e-5, 1),
    (3.0, 1e-5, 30),
    (0.5, 1e-3, 1_000),
    (8.0, 0.3, 7),
    (100.0, 1e-5, 10),
    (1e4, 1e-5, 10),
]


@pytest.mark.parametrize(("epsilon", "delta", "count"), BUDGETS)
@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace"])
def test_budgets_are_kept_and_used_up(name: str, epsilon: float, delta: float, count: int) -> None:
    got = calibrate(config(name, epsilon=None, clip=2.0), epsilon, delta, count, (16,), 8)
    again = SHIELDS[name].schema.model_validate_json(got.model_dump_json())
    spent = compose_repeated(build(again, (16,), 8), count, delta).epsilon
    assert epsilon * (1 - 1e-3) < spent <= epsilon
    assert got.clip == 2.0


@pytest.mark.parametrize("count", [2, 30, 5_000])
def test_a_gaussian_budget_takes_noise_by_the_root_of_the_count(count: int) -> None:
    single = mechanism("clip-gaussian", epsilon=3.0, delta=1e-6)
    got = calibrate(single.config, 3.0, 1e-6, count, (16,), 8)
    scale = build(got, (16,), 8).scale
    extra = slack(count, 3.0, 1e-6)
    # The slack of many releases grows by the root of their count as well: here it is 0.2 % of ε.
    assert scale == pytest.approx(math.sqrt(count) * single.scale, rel=extra)
    continuous = gaussian_delta(math.sqrt(count) * 2 / scale, 3.0 - extra)
    assert continuous == pytest.approx(delta_within_slack(1e-6, extra), rel=1e-3)
    assert continuous <= delta_within_slack(1e-6, extra)


def test_a_laplace_budget_makes_use_of_delta() -> None:
    got = calibrate(config("clip-laplace", epsilon=1), 3.0, 1e-5, 100, (16,), 8)
    assert response_epsilon(got.epsilon, 100) == pytest.approx(3.0, rel=1e-3)
    assert got.epsilon > 2 * 3.0 / 100


@pytest.mark.parametrize(
    ("name", "epsilon", "delta", "count", "message"),
    [
        ("norm-gaussian", 1, DELTA, 1, "its ε is not a record's"),
        ("batch-norm-laplace", 1, DELTA, 1, "allowed: clip-gaussian, clip-laplace"),
        ("pixel-laplace", 1, DELTA, 1, "its ε is not a record's"),
        ("clip-gaussian", 0, DELTA, 1, "epsilon: a budget must be a finite number above 0"),
        ("clip-laplace", -1, DELTA, 1, "epsilon: a budget must be"),
        ("clip-laplace", math.inf, DELTA, 1, "epsilon: a budget must be"),
        ("clip-laplace", math.nan, DELTA, 1, "epsilon: a budget must be"),
        ("clip-gaussian", 1, 0, 1, "delta: must be between 0 and 1"),
        ("clip-gaussian", 1, 1, 1, "delta: must be between 0 and 1"),
        ("clip-laplace", 1, DELTA, 0, "released at least once"),
    ],
)
def test_what_is_no_budget_is_refused(
    name: str, epsilon: float, delta: float, count: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        calibrate(config(name, epsilon=1), epsilon, delta, count, (3, 4, 4), 8)


def test_no_shield_has_no_budget() -> None:
    with pytest.raises(RequestError, match="shield 'none'"):
        calibrate(config("none"), 1.0, DELTA, 1, (16,), 8)
