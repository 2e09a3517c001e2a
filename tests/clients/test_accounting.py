"""What many releases add up to, against closed forms that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from analysis.audit import audit
from clients.shields import SHIELDS, Mechanism, ShieldConfig, build
from clients.shields.accounting import calibrated, composed, composed_rdp, together
from clients.shields.clipping import ClipGaussian
from models.errors import RequestError

DELTA = 1e-5


def config(name: str, **settings) -> ShieldConfig:
    return SHIELDS[name][0].model_validate(settings)


def mechanism(name: str, shape: tuple[int, ...] = (16,), batch: int = 8, **settings) -> Mechanism:
    made = build(config(name, **settings), shape, batch)
    assert isinstance(made, Mechanism)
    return made


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


# --------------------------------------------------------------------------- Gaussian


@pytest.mark.parametrize("count", [1, 7, 500])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_gaussian_releases_are_one_with_less_noise(epsilon: float, count: int) -> None:
    made = mechanism("clip-gaussian", epsilon=epsilon, clip=0.3)
    got = composed(made, count, DELTA)
    ratio = math.sqrt(count) * 0.6 / made.scale
    assert gaussian_delta(ratio, got.epsilon) == pytest.approx(DELTA, rel=1e-5)
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
    got = composed(made, count, DELTA).epsilon
    assert got == pytest.approx(found["REPLACE_SPECIAL"], rel=1e-4)
    assert got < 0.6 * found["REPLACE_ONE"]


# ---------------------------------------------------------------------------- Laplace


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 10.0, 49.0, 1e4])
def test_one_laplace_release_keeps_its_epsilon(epsilon: float) -> None:
    got = composed(mechanism("clip-laplace", epsilon=epsilon), 1, DELTA)
    assert got.epsilon == pytest.approx(epsilon)
    assert got.delta == 0


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(
    ("epsilon", "count"), [(0.01, 100), (0.1, 2_000), (1.0, 50), (1.0, 3_000), (3.0, 400)]
)
def test_laplace_releases_are_randomised_responses(
    epsilon: float, count: int, delta: float
) -> None:
    got = composed(mechanism("clip-laplace", epsilon=epsilon, clip=5), count, delta)
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

    got = composed(mechanism("clip-laplace", epsilon=epsilon), 2, delta)
    assert exact(got.epsilon) <= delta
    assert got.epsilon <= 2 * epsilon


@pytest.mark.parametrize("epsilon", [60.0, 1e4, 1e6])
@pytest.mark.parametrize("count", [1, 1_000])
def test_very_large_epsilons_add_up(epsilon: float, count: int) -> None:
    laplace = composed(mechanism("clip-laplace", epsilon=epsilon), count, DELTA)
    assert laplace.epsilon == pytest.approx(epsilon * count)
    made = mechanism("clip-gaussian", epsilon=epsilon)
    gaussian, ratio = composed(made, count, DELTA).epsilon, 2 * math.sqrt(count) / made.scale
    assert gaussian_delta(ratio, gaussian) == pytest.approx(DELTA, rel=1e-2)
    both = together([(mechanism("clip-laplace", epsilon=epsilon), count), (made, count)], DELTA)
    assert both.epsilon == pytest.approx(laplace.epsilon + gaussian)


def test_shields_of_the_papers_add_up_for_a_whole_image() -> None:
    pixels = composed(mechanism("pixel-laplace", (1, 28, 28), epsilon=2), 10, DELTA)
    assert pixels.epsilon == pytest.approx(784 * 2 * 10)
    batch = mechanism("batch-norm-laplace", (1280,), 64, epsilon=5, sensitivity="experiments")
    assert composed(batch, 5, DELTA).epsilon == pytest.approx(5 * 1280 * 5 * (2 + math.sqrt(68)))
    image = mechanism("norm-gaussian", (3, 4, 4), epsilon=1)
    ratio = math.sqrt(10 * 2 * 16 * 3 / 5) / image.scale
    assert gaussian_delta(ratio, composed(image, 10, DELTA).epsilon) == pytest.approx(
        DELTA, rel=1e-5
    )


# ------------------------------------------------------------------------ of all kinds


@pytest.mark.parametrize(
    ("laplace", "count", "gaussian", "times"),
    [(1.0, 10, 2.0, 5), (0.1, 200, 1.0, 1), (3.0, 1, 0.5, 3), (0.01, 5, 8.0, 1)],
)
def test_kinds_of_noise_compose(laplace: float, count: int, gaussian: float, times: int) -> None:
    first = mechanism("clip-laplace", epsilon=laplace)
    second = mechanism("clip-gaussian", epsilon=gaussian)
    ratio = math.sqrt(times) * 2 / second.scale
    most = laplace * count + composed(second, times, DELTA).epsilon
    exact = least_epsilon(lambda e: responses_delta(e, laplace, count, ratio), most)
    got = together([(first, count), (second, times)], DELTA)
    assert exact <= got.epsilon < min(exact * 1.005, most * (1 + 1e-9))
    swapped = together([(second, times), (first, count)], DELTA)
    assert swapped.epsilon == pytest.approx(got.epsilon)


def test_the_same_release_in_parts_is_the_same() -> None:
    for name in ("clip-laplace", "clip-gaussian"):
        made = mechanism(name, epsilon=0.5)
        parts = together([(made, 10), (made, 30)], DELTA)
        assert parts.epsilon == pytest.approx(composed(made, 40, DELTA).epsilon)
        assert parts.reasons == made.held().reasons


def test_a_little_noise_beside_a_lot_of_it_needs_no_finer_grid() -> None:
    faint, loud = mechanism("clip-laplace", epsilon=1e-7), mechanism("clip-gaussian", epsilon=20)
    assert together([(faint, 3), (loud, 1)], DELTA).epsilon == pytest.approx(20, rel=1e-4)


@pytest.mark.parametrize("count", [1, 10, 300])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_renyi_differential_privacy_is_looser(epsilon: float, count: int) -> None:
    for name in ("clip-laplace", "clip-gaussian"):
        releases = [(mechanism(name, epsilon=epsilon), count)]
        tight, loose = together(releases, DELTA).epsilon, composed_rdp(releases, DELTA)
        assert tight * (1 - 1e-4) < loose < 1.3 * tight


def test_renyi_differential_privacy_of_very_large_epsilons_is_their_sum() -> None:
    releases = [(mechanism("clip-laplace", epsilon=1e4), 3)]
    assert composed_rdp(releases, DELTA) == pytest.approx(3e4)
    both = [*releases, (mechanism("clip-gaussian", epsilon=1), 1)]
    assert 3e4 + 1 < composed_rdp(both, DELTA) < 3e4 + 1.2


def test_one_release_without_a_guarantee_spoils_all() -> None:
    good = mechanism("clip-gaussian", epsilon=1)
    bare = mechanism("clip-laplace", epsilon=None)
    running = mechanism("batch-norm-laplace", epsilon=1).eval()
    got = together([(good, 1), (bare, 1), (running, 2)], DELTA)
    assert got.epsilon is None
    assert got.reasons == ("no noise", "running statistics do not bound an activation")
    assert composed_rdp([(good, 1), (bare, 1)], DELTA) is None
    assert composed(running.train(), 2, DELTA).epsilon > 0


@pytest.mark.parametrize(
    ("count", "delta"), [(0, DELTA), (-1, DELTA), (1, 0), (1, 1), (1, math.nan)]
)
def test_what_is_no_composition_is_refused(count: int, delta: float) -> None:
    with pytest.raises(RequestError, match=r"count|delta"):
        composed(mechanism("clip-gaussian", epsilon=1), count, delta)


class Repeated(ClipGaussian):
    """Releases each example thirty times."""

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().bounded(tensor).repeat_interleave(30, dim=0)


def test_an_attack_on_all_releases_stays_within_the_budget() -> None:
    # Thirty releases with the noise of one are found out; those of the budget are not.
    single = config("clip-gaussian", epsilon=1.0, delta=1e-3)
    careless = audit(Repeated(single, (16,), 1), samples=8_000)
    assert careless.refutes(careless.held)
    careful = calibrated(single, 1.0, 1e-3, 30, (16,), 1)
    budget = composed(ClipGaussian(careful, (16,), 1), 30, 1e-3)
    result = audit(Repeated(careful, (16,), 1), samples=8_000)
    assert result.could_refute(budget)
    assert not result.refutes(budget)
    assert result.lower_bound(1e-3) > 0.1  # it does see something


# ------------------------------------------------------------------------------ budgets

BUDGETS = [
    (3.0, 1e-5, 1),
    (3.0, 1e-5, 30),
    (0.1, 1e-3, 1_000),
    (8.0, 0.3, 7),
    (100.0, 1e-5, 10),
    (1e4, 1e-5, 10),
]


@pytest.mark.parametrize(("epsilon", "delta", "count"), BUDGETS)
@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace"])
def test_budgets_are_kept_and_used_up(name: str, epsilon: float, delta: float, count: int) -> None:
    got = calibrated(config(name, epsilon=None, clip=2.0), epsilon, delta, count, (16,), 8)
    again = SHIELDS[name][0].model_validate_json(got.model_dump_json())
    spent = composed(build(again, (16,), 8), count, delta).epsilon
    assert epsilon * (1 - 1e-3) < spent <= epsilon
    assert got.clip == 2.0


@pytest.mark.parametrize("count", [2, 30, 5_000])
def test_a_gaussian_budget_takes_noise_by_the_root_of_the_count(count: int) -> None:
    single = mechanism("clip-gaussian", epsilon=3.0, delta=1e-6)
    got = calibrated(single.config, 3.0, 1e-6, count, (16,), 8)
    scale = build(got, (16,), 8).scale
    assert scale == pytest.approx(math.sqrt(count) * single.scale, rel=1e-5)
    assert gaussian_delta(math.sqrt(count) * 2 / scale, 3.0) == pytest.approx(1e-6, rel=1e-3)
    assert gaussian_delta(math.sqrt(count) * 2 / scale, 3.0) <= 1e-6


def test_a_laplace_budget_makes_use_of_delta() -> None:
    got = calibrated(config("clip-laplace", epsilon=1), 3.0, 1e-5, 100, (16,), 8)
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
        calibrated(config(name, epsilon=1), epsilon, delta, count, (3, 4, 4), 8)


def test_no_shield_has_no_budget() -> None:
    with pytest.raises(RequestError, match="shield 'none'"):
        calibrated(config("none"), 1.0, DELTA, 1, (16,), 8)
