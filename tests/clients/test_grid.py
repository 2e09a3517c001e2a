"""The grid: norms in whole numbers, room for the noise, the way back, and what the slack is for."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from scipy import special, stats

from pudica.clients.shields import SHIELDS, build, grid
from pudica.clients.shields.analytic import analytic_epsilon, discrete_epsilon, discrete_sigma
from pudica.clients.shields.discrete import LARGEST_SCALE, NoiseKind, get_exact_sampler
from pudica.clients.shields.grid import (
    LARGEST_INTEGER,
    MAX_FEATURES,
    MIN_LEVELS,
    MIN_SIGMA,
    REACH,
    SHARE,
    IntegerGrid,
    delta_within_slack,
    round_rows,
    slack,
)
from pudica.clients.shields.integers import Clipped
from pudica.models.randomness import numpy_generator

CLIPPED = ("clip-gaussian", "clip-laplace")
LEVELS = (1, 2, 3, 4, 7, 100, 728, 5041, 30_000)


def clipped(
    name: str, shape: tuple[int, ...] = (32,), batch: int = 64, **settings: float
) -> Clipped:
    made = build(SHIELDS[name].schema.model_validate({"epsilon": 1.0} | settings), shape, batch)
    assert isinstance(made, Clipped)
    return made


def grid_of(made: Clipped) -> IntegerGrid:
    assert made.grid
    return made.grid


def norms(rows: torch.Tensor, order: int) -> list[int]:
    """Return each row's L1 norm or squared L2 norm, in Python's integers."""
    return [sum(abs(entry) ** order for entry in row) for row in rows.tolist()]


# ----------------------------------------------------------------------------- rounding


def awkward(features: int, order: int, most: int) -> torch.Tensor:
    """Return rows of a norm just below ``most``, or of entries that rounding makes larger."""
    random = torch.Generator().manual_seed(features * most)
    normal = torch.randn(4, features, generator=random, dtype=torch.float64)
    spike = torch.zeros(1, features, dtype=torch.float64)
    spike[0, -1] = 1
    rows = torch.cat(
        [
            normal,
            normal**9,  # few of them are large
            torch.ones(1, features, dtype=torch.float64),
            torch.linspace(-1, 1, features, dtype=torch.float64)[None],
            0.5 ** torch.arange(features, dtype=torch.float64)[None],
            spike,
            spike + 1e-3,
            -spike + 1e-12 * normal[:1],
        ]
    )
    rows = rows / rows.norm(p=order, dim=1, keepdim=True) * most * (1 - 1e-6)
    halves = [torch.full((1, features), h + 1e-9, dtype=torch.float64) for h in (0.5, 1.5, 2.5)]
    tiny = torch.full((1, features), 1e-300, dtype=torch.float64)
    return torch.cat([rows, tiny, 0 * tiny, *halves, 1.9 * rows])


@pytest.mark.parametrize("most", LEVELS)
@pytest.mark.parametrize("features", [1, 2, 7, 96, 1280])
@pytest.mark.parametrize("order", [1, 2])
def test_rounding_makes_no_row_longer_than_allowed(order: int, features: int, most: int) -> None:
    rows = awkward(features, order, most)
    before = rows.clone()
    got = round_rows(rows, order, most)
    assert got.dtype == torch.int64
    assert max(norms(got, order)) <= most**order
    assert torch.equal(rows, before)
    assert (got * rows >= 0).all()
    if order == 1:
        # Small entries are not all lost: the sum stays, and no entry moves by a whole step.
        kept = rows.abs().sum(1) <= most
        sums = got.abs().sum(1)[kept]
        assert kept.any()
        assert ((sums - rows.abs().sum(1)[kept]).abs() <= 0.5 + 1e-6).all()
        assert ((got - rows).abs()[kept] < 1).all()
        return
    # Those that the nearest integers do not make too long are the nearest.
    nearest = rows.round().long()
    short = torch.tensor([norm <= most**order for norm in norms(nearest, order)])
    assert torch.equal(got[short], nearest[short])
    assert short.any()
    # All others are shrunk, so no entry grows, or changes its sign.
    assert (got.abs() <= nearest.abs()).all()


@pytest.mark.parametrize("order", [1, 2])
def test_each_row_is_rounded_for_itself(order: int) -> None:
    rows = awkward(96, order, 100)
    alone = [round_rows(row[None], order, 100)[0] for row in rows]
    assert torch.equal(round_rows(rows, order, 100), torch.stack(alone))
    assert torch.equal(round_rows(rows.flip(0), order, 100), torch.stack(alone).flip(0))


@pytest.mark.parametrize(("order", "most", "halves"), [(1, 4, 7), (2, 700, 2**20), (2, 4, 50)])
def test_rounding_ends_with_as_many_features_as_allowed(order: int, most: int, halves: int) -> None:
    # An entry at most doubles when it is rounded up, so half the norm is always short enough.
    rows = torch.full((1, MAX_FEATURES), 1e-9, dtype=torch.float64)
    rows[0, :halves] = torch.linspace(0.500001, 0.57, halves, dtype=torch.float64)
    assert rows.norm(p=order) <= most < rows.round().norm(p=order)
    assert max(norms(round_rows(rows, order, most), order)) <= most**order


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("features", [1, 5, 32])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 1e3])
def test_any_two_examples_are_within_twice_the_levels(
    name: str, features: int, epsilon: float
) -> None:
    # Any 32 bits, of which some are NaN and infinite, and some nearly so.
    made = clipped(name, (features,), 400, epsilon=epsilon)
    bits = np.random.default_rng(0).integers(0, 2**32, (400, features), dtype=np.uint32)
    rows = torch.from_numpy(bits.view(np.float32).copy())
    rows[:40] = torch.randn(40, features, generator=torch.Generator().manual_seed(0))
    rows[40:44] = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38])[:, None]
    steps = made.round_to_grid(made.validate_input(rows)).numpy()
    order, levels = made.order, grid_of(made).levels
    assert max(norms(torch.from_numpy(steps), order)) <= levels**order
    apart = max(int((np.abs(steps[i + 1 :] - steps[i]) ** order).sum(1).max()) for i in range(399))
    assert (1.9 * levels) ** order < apart <= (2 * levels) ** order  # which is nearly reached


@pytest.mark.parametrize("name", CLIPPED)
def test_an_example_is_on_the_grid_whatever_is_beside_it(name: str) -> None:
    made, random = clipped(name), torch.Generator().manual_seed(0)
    rows, others = torch.randn(2, 64, 32, generator=random)
    for i in range(0, 64, 7):
        mixed = 1e6 * others.clone()
        mixed[i] = rows[i]
        assert torch.equal(made.round_to_grid(mixed)[i], made.round_to_grid(rows)[i])


# ----------------------------------------------------------------------------- the grid

UNITS = {"gaussian": np.geomspace(1e-3, 1e4, 300), "laplace": np.geomspace(1e-6, 1e4, 300)}


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("norm", [1.0, 0.3, 777.0])
def test_a_grid_has_room_for_examples_and_their_noise(kind: NoiseKind, norm: float) -> None:
    for unit in UNITS[kind].tolist():
        made = IntegerGrid.of(kind, norm, unit)
        # In fractions: there is no less noise than was asked for, and hardly more.
        asked = 2 * made.levels * Fraction(unit)
        assert asked <= Fraction(made.scale) <= asked * Fraction(1 + 1e-15)
        assert made.levels >= MIN_LEVELS
        assert made.step * made.levels == pytest.approx(norm)
        if kind == "gaussian":
            assert made.scale >= MIN_SIGMA
        reach = made.levels + REACH[kind] * made.scale
        assert reach <= LARGEST_INTEGER[made.dtype] + 1
        if made.dtype == "int16":
            # It is the finest one in 16 bits.
            assert reach * (made.levels + 1) / made.levels > LARGEST_INTEGER["int16"]
        else:
            least = max(MIN_LEVELS, math.ceil(MIN_SIGMA / (2 * unit)) * (kind == "gaussian"))
            assert made.levels == least
            assert reach > LARGEST_INTEGER["int16"]


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_what_a_grid_leaves_out_is_rare(kind: NoiseKind) -> None:
    law = stats.norm if kind == "gaussian" else stats.laplace
    assert 2 * law.sf(REACH[kind]) < 1e-9


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("epsilon", [1, 3, 8])
def test_two_bytes_are_enough_for_usual_budgets(name: str, epsilon: float) -> None:
    assert grid_of(clipped(name, epsilon=epsilon)).dtype == "int16"


@pytest.mark.parametrize("name", CLIPPED)
def test_an_epsilon_for_which_no_grid_has_room_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="too small"):
        clipped(name, epsilon=1e-5)
    assert grid_of(clipped(name, epsilon=1e-3)).scale <= LARGEST_SCALE[clipped(name).kind]


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("epsilon", [0.01, 0.3, 1, 3, 8, 50, 1e4])
@pytest.mark.parametrize("clip", [1e-3, 0.3, 1.0, 777.7])
def test_what_travels_is_what_was_released(name: str, epsilon: float, clip: float) -> None:
    made = grid_of(clipped(name, epsilon=epsilon, clip=clip))
    most = LARGEST_INTEGER[made.dtype]
    every = np.arange(-most, most + 1)
    values = made.to_values(every)
    assert values.dtype == torch.float32
    assert np.array_equal(values.numpy(), (every * made.step).astype(np.float32))
    assert values.unique().numel() == len(every)
    again = made.to_integers(values)
    assert again.dtype == made.dtype
    assert np.array_equal(again, every)


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_what_is_beyond_the_largest_integer_is_cut_off(dtype: str) -> None:
    most = LARGEST_INTEGER[dtype]
    made = IntegerGrid(0.1, 4, 10.0, "int16" if dtype == "int16" else "int32")
    far = np.array([2**40, most + 1, most, 0, -most, -most - 1, -(2**40)])
    got = made.clamp(far)
    assert got.tolist() == [most, most, most, 0, -most, -most, -most]
    assert got.dtype == dtype
    assert torch.equal(made.to_values(made.to_integers(made.to_values(far))), made.to_values(got))


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("epsilon", [0.01, 1, 8, 50, 1e4])
def test_every_released_value_is_a_whole_number_of_steps(name: str, epsilon: float) -> None:
    made = clipped(name, (5, 4), 64, epsilon=epsilon, clip=0.7)
    batch = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(0))
    released, _ = made.protect(batch, numpy_generator(0, "noise"))
    found = grid_of(made)
    noise = get_exact_sampler(made.kind, found.scale).draw(64 * 20, numpy_generator(0, "noise"))
    wanted = made.round_to_grid(batch).numpy().ravel() + noise
    assert np.abs(wanted).max() <= LARGEST_INTEGER[found.dtype]
    assert np.array_equal(found.to_integers(released).ravel(), wanted)
    assert torch.equal(found.to_values(wanted).view_as(released), released)


# ----------------------------------------------------------------------------- the slack
#
# Exact in one and two dimensions, for features and a σ so small that all of it can be added up.


def lengths(features: int, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return k² of all vectors of integers k within 13σ or so, and ln q(k), ln p(k) of them.

    q is the discrete Gaussian, p a Gaussian that is rounded to integers.
    """
    numbers = np.arange(0, int(13 * sigma) + 2, dtype=np.float64)
    # From the tail, where a difference of two probabilities loses no digits.
    rounding = stats.norm.sf((numbers - 0.5) / sigma) - stats.norm.sf((numbers + 0.5) / sigma)
    rounding = np.log(np.concatenate([rounding[:0:-1], rounding]))
    numbers = np.concatenate([-numbers[:0:-1], numbers])
    power = -(numbers**2) / (2 * sigma**2)
    weights = power - np.log(np.exp(power).sum())
    if features == 1:
        return numbers**2, weights, rounding
    pairs = [each[:, None] + each[None] for each in (numbers**2, weights, rounding)]
    return pairs[0], pairs[1], pairs[2]


def exact_delta(shift: tuple[int, ...], sigma: float, epsilon: float) -> float:
    """Return δ of discrete Gaussian noise on two vectors of integers, all outputs added up."""
    numbers = np.arange(-int(14 * sigma) - 60, int(14 * sigma) + 61, dtype=np.float64)
    weights = np.exp(-(numbers**2) / (2 * sigma**2))
    weights /= weights.sum()
    losses = [((numbers - s) ** 2 - numbers**2) / (2 * sigma**2) for s in shift]
    if len(shift) == 1:
        mass, loss = weights, losses[0]
    else:
        mass, loss = np.multiply.outer(weights, weights), np.add.outer(*losses)
    return float((mass * -np.expm1(np.minimum(epsilon - loss, 0))).sum())


SHIFTS = [(1,), (4,), (25,), (1, 0), (1, 1), (3, 4), (-7, 24), (2, -30)]


def small(monkeypatch: pytest.MonkeyPatch, features: int, sigma: float) -> None:
    monkeypatch.setattr(grid, "MAX_FEATURES", features)
    monkeypatch.setattr(grid, "MIN_SIGMA", sigma)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("sigma", [3.0, 7.5, 20.0])
@pytest.mark.parametrize("shift", SHIFTS)
def test_discrete_noise_keeps_what_it_says(
    monkeypatch: pytest.MonkeyPatch, shift: tuple[int, ...], sigma: float, delta: float
) -> None:
    small(monkeypatch, len(shift), sigma)
    epsilon = discrete_epsilon(sigma / math.hypot(*shift), delta)
    assert exact_delta(shift, sigma, epsilon) <= delta


@pytest.mark.parametrize("shift", [(4,), (3, 4)])
def test_slack_is_what_noise_on_integers_costs_at_least_somewhere(
    monkeypatch: pytest.MonkeyPatch, shift: tuple[int, ...]
) -> None:
    # Without slack some δ is exceeded: discrete noise is another noise, if a similar one.
    exceeded = []
    for sigma, delta in itertools.product((0.6, 1.0, 2.0, 3.0), (0.3, 0.1, 1e-2, 1e-5)):
        epsilon = analytic_epsilon(sigma / math.hypot(*shift), delta)
        exceeded.append(exact_delta(shift, sigma, epsilon) > delta * (1 + 1e-6))
        small(monkeypatch, len(shift), sigma)
        assert (
            exact_delta(shift, sigma, discrete_epsilon(sigma / math.hypot(*shift), delta)) <= delta
        )
    assert any(exceeded)


def test_many_releases_are_one_of_as_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 1, 7.5)
    twice = slack(2, 1.0, 1e-5)
    epsilon = discrete_epsilon(7.5 / 5, 1e-5, count=2)
    assert exact_delta((3, 4), 7.5, epsilon) <= 1e-5
    small(monkeypatch, 2, 7.5)
    assert slack(1, 1.0, 1e-5) == twice


@pytest.mark.parametrize("delta", [1e-3, 1e-9])
@pytest.mark.parametrize("sigma", [3.0, 7.5, 20.0])
@pytest.mark.parametrize("features", [1, 2])
def test_the_two_noises_are_as_close_as_said_but_for_what_is_rare(
    monkeypatch: pytest.MonkeyPatch, features: int, sigma: float, delta: float
) -> None:
    small(monkeypatch, features, sigma)
    epsilon = 1.0
    eta, t = slack(1, epsilon, delta) / 2, epsilon + 2 + math.log(8 / (SHARE * delta))
    squares, discrete, rounding = lengths(features, sigma)
    usual = np.abs(squares / sigma**2 - features) <= 2 * math.sqrt(features * t) + 2 * t
    apart = np.abs(rounding - discrete)[usual].max()
    assert 0.8 * eta < apart <= eta  # the bound is nearly reached, so a slip would show
    # τ of either noise: what enumeration leaves out, beyond 13σ, is less than 10⁻³⁷.
    for weights in (discrete, rounding):
        assert np.exp(weights[~usual]).sum() <= 4 * math.exp(-t)
    assert (1 + math.exp(epsilon + eta)) * 4 * math.exp(-t) <= SHARE * delta
    assert delta_within_slack(delta, 2 * eta) * math.exp(eta) + SHARE * delta <= delta


@pytest.mark.parametrize("sigma", [4.0, 50.0, MIN_SIGMA])
def test_one_entry_of_either_noise_differs_by_no_more_than_said(sigma: float) -> None:
    t = 40.0
    a = 2 * (t + math.log(2 * MAX_FEATURES))
    reach = int(math.sqrt(a) * sigma)
    with mpmath.workdps(150):
        s = mpmath.mpf(sigma)
        # By Poisson's summation, of which the other terms are below e^(−300) here.
        total = s * mpmath.sqrt(2 * mpmath.pi) * (1 + 2 * mpmath.exp(-2 * (mpmath.pi * s) ** 2))
        for k in {*range(min(reach, 40)), *np.linspace(0, reach, 60).astype(int).tolist()}:
            discrete = mpmath.exp(-((k / s) ** 2) / 2) / total
            half = mpmath.mpf(1) / 2
            above, below = (mpmath.erfc((k + h) / s / mpmath.sqrt(2)) for h in (-half, half))
            apart = mpmath.log((above - below) / 2 / discrete)
            square = (k / s) ** 2
            rest = square / 192 + a * square / 2880 + mpmath.mpf(1) / 500
            assert abs(apart - (square - 1) / (24 * s**2)) <= rest / s**4


def log_weights(sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return k²/σ² of k = 0, 1, … and ln P(|k|) of a rounded and a discrete Gaussian, up to 36σ."""
    numbers = np.arange(int(36 * sigma), dtype=np.float64)
    lower, upper = (special.log_ndtr((half - numbers) / sigma) for half in (0.5, -0.5))
    rounding = lower + np.log1p(-np.exp(upper - lower)) + np.where(numbers, math.log(2), 0)
    power = -(numbers**2) / (2 * sigma**2) + np.where(numbers, math.log(2), 0)
    return numbers**2 / sigma**2, rounding, power - special.logsumexp(power)


@pytest.mark.parametrize("count", [1, 1_000_000])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-3), (8.0, 1e-9)])
def test_slack_is_that_of_all_entries(count: int, epsilon: float, delta: float) -> None:
    # What one entry may differ, added up where Σk²/σ² is as large as it usually gets, or as small.
    features, t = count * MAX_FEATURES, epsilon + 2 + math.log(8 / (SHARE * delta))
    spread = 2 * math.sqrt(features * t) + 2 * t
    a = 2 * (t + math.log(2 * features))
    rest = (features + spread) * (1 / 192 + a / 2880) + features / 500
    eta = spread / (24 * MIN_SIGMA**2) + rest / MIN_SIGMA**4
    assert slack(count, epsilon, delta) == pytest.approx(2 * eta, rel=1e-9)


@pytest.mark.parametrize("t", [1.0, 10.0, 40.0, 80.0])
@pytest.mark.parametrize("features", [1, 2, 1000, MAX_FEATURES, 1000 * MAX_FEATURES])
def test_unusual_noise_is_as_rare_as_counted(features: int, t: float) -> None:
    # 2τ ≤ 8e^−t: four e^−t for a length beyond either bound, or an entry beyond √a. Chernoff's
    # bounds of both noises, with the exponents that Laurent and Massart take of a Gaussian.
    squares, *noises = log_weights(MIN_SIGMA)
    root = math.sqrt(t / features)
    spread = 2 * math.sqrt(features * t) + 2 * t
    entry = 2 * features * stats.norm.sf(math.sqrt(2 * (t + math.log(2 * features))))
    for weights in noises:
        beyond = entry
        for power, length in ((root / (1 + 2 * root), spread), (-root, -spread)):
            moment = special.logsumexp(weights + power * squares)
            if features + length > 0:
                beyond += math.exp(features * (moment - power) - power * length)
        assert beyond <= 4 * math.exp(-t)


# --------------------------------------------------------------------- σ and ε with slack


@pytest.mark.parametrize("count", [1, 30, 5_000])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 100.0])
def test_sigma_and_epsilon_are_inverse(epsilon: float, delta: float, count: int) -> None:
    sigma = discrete_sigma(epsilon, delta, count)
    again = discrete_epsilon(sigma / math.sqrt(count), delta, count)
    assert epsilon * (1 - 1e-4) < again <= epsilon * (1 + 1e-9)


def test_an_epsilon_that_slack_uses_up_is_refused() -> None:
    extra = slack(1000, 2e-3, 1e-5)
    assert extra > 1e-3
    with pytest.raises(ValueError, match="too small for 1000 releases"):
        discrete_sigma(2e-3, 1e-5, 1000)
    assert discrete_sigma(2.1 * extra, 1e-5, 1000) > 0


def test_slack_of_a_release_is_small_and_grows_by_the_root_of_their_count() -> None:
    assert slack(1, 1.0, 1e-5) < 1e-4
    assert slack(10_000, 1.0, 1e-5) == pytest.approx(100 * slack(1, 1.0, 1e-5), rel=0.05)
    assert slack(1, 8.0, 1e-5) > slack(1, 1.0, 1e-5)
    assert slack(1, 1.0, 1e-9) > slack(1, 1.0, 1e-5)
