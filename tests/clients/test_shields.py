"""Shields: the noise is what it should be, the bounds hold for any input, the ε are right."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import nn

from pudica.clients.shields import SHIELDS, Mechanism, Shield, build
from pudica.clients.shields.base import FLOATING_POINT_NOISE, draw_noise
from pudica.clients.shields.element_level import SENSITIVITY, NormGaussian
from pudica.clients.shields.grid import delta_within_slack, slack
from pudica.clients.shields.integers import Clipped, IntegerMechanism
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, SystemGenerator, numpy_generator

MECHANISMS = {
    name: {"epsilon": 2.0} for name, kind in SHIELDS.items() if issubclass(kind, Mechanism)
}
ON_GRID = [name for name in MECHANISMS if issubclass(SHIELDS[name], IntegerMechanism)]
FLOATS = [name for name in MECHANISMS if name not in ON_GRID]
# Counts bound nothing by themselves: what a replaced image moves is bounded by what they are.
BOUNDING = [name for name in MECHANISMS if name != "counts"]


def shield(name: str, shape: tuple[int, ...] = (6, 4, 4), batch: int = 8, **settings) -> Shield:
    schema = SHIELDS[name].schema
    values = (MECHANISMS | {"low-resolution": {"side": 2}}).get(name, {}) | settings
    return build(schema.model_validate(values), shape, batch)


def mechanism(name: str, *arguments, **settings) -> Mechanism:
    made = shield(name, *arguments, **settings)
    assert isinstance(made, Mechanism)
    return made


def on_grid(name: str, *arguments, **settings) -> IntegerMechanism:
    made = shield(name, *arguments, **settings)
    assert isinstance(made, IntegerMechanism)
    return made


def awkward(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return batches that try a bound: huge, tiny, equal, sparse, of either sign."""
    random = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    spike = torch.zeros(8, *shape)
    spike.view(8, -1)[0, 0] = 3e38
    outlier = torch.zeros(8, *shape)
    outlier[3] = -1e6
    return {
        "random": random,
        "huge": random * 1e37,
        "tiny": random * 1e-42,
        "zero": torch.zeros(8, *shape),
        "ones": torch.ones(8, *shape),
        "largest": torch.full((8, *shape), torch.finfo(torch.float32).max),
        "spike": spike,
        "outlier": outlier,
        "positive": random.abs(),
        "large and equal": torch.full((8, *shape), 1e6),
        "large and nearly equal": 1e5 + 1e-2 * random,
        "bfloat16": random.bfloat16(),
        "float64": random.double(),
    }


AWKWARD = list(awkward((1,)))

# ---------------------------------------------------------------------------- noise


@pytest.mark.parametrize("randomness", [numpy_generator(0, "noise"), SystemGenerator()])
def test_noise_has_its_distribution(randomness: Randomness) -> None:
    # Kolmogorov-Smirnov; false alarms with probability 1e-6 where the draws are not seeded.
    for kind, law in (("laplace", stats.laplace), ("gaussian", stats.norm)):
        values = draw_noise(kind, (200, 500), 0.7, randomness)
        assert values.dtype == torch.float32
        assert stats.kstest(values.flatten().numpy(), law(scale=0.7).cdf).pvalue > 1e-6


@pytest.mark.parametrize("name", MECHANISMS)
def test_noise_is_added_at_the_mechanisms_scale(name: str) -> None:
    made = mechanism(name)
    batch = awkward((6, 4, 4))["positive"]
    protected, _ = made.protect(batch, numpy_generator(1, "scale"))
    noise = (protected - made.noise_centres(batch)).flatten()
    law = stats.laplace if made.kind == "laplace" else stats.norm
    assert len(noise) == 8 * 6 * 4 * 4
    assert stats.kstest(noise.numpy(), law(scale=made.scale).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ON_GRID)
def test_noise_on_a_grid_is_whole_steps_on_the_rounded_function(name: str) -> None:
    made, batch = on_grid(name), 100 * awkward((6, 4, 4))["random"]
    protected, _ = made.protect(batch, numpy_generator(1, "whole"))
    steps = made.grid.to_integers(protected).astype(np.int64)
    assert torch.equal(made.grid.to_values(steps), protected)
    centres = made.round_to_grid(made.validate_input(batch)).view_as(batch)
    assert torch.equal(made.grid.to_values(centres.numpy()), made.noise_centres(batch))
    noise = (steps - centres.numpy()).ravel()
    scale = made.grid.scale
    spread = stats.dlaplace(1 / scale).std() if made.kind == "laplace" else scale
    # The mean and the variance of 768 draws; a kurtosis of 6 at most. Five standard errors each.
    assert abs(noise.mean()) < 5 * spread / math.sqrt(768)
    assert noise.var() == pytest.approx(spread**2, rel=5 * math.sqrt(5 / 768))


def test_scales_are_those_of_the_papers() -> None:
    assert mechanism("batch-norm-laplace", (1280,), 64, epsilon=5).scale == pytest.approx(
        2 * math.sqrt(63) / 5
    )
    measured = mechanism("batch-norm-laplace", (1280,), 64, epsilon=5, sensitivity="experiments")
    assert measured.scale == pytest.approx(math.sqrt(63) / 5)
    classical = mechanism("norm-gaussian", epsilon=2, delta=1e-5)
    assert classical.scale == pytest.approx(math.sqrt(math.log(1.25e5)) / 2)
    assert mechanism("pixel-laplace", epsilon=10).scale == pytest.approx(0.1)
    assert mechanism("clip-laplace", epsilon=4, clip=3).scale == pytest.approx(1.5)
    assert mechanism("counts", (7,), epsilon=2).scale == pytest.approx(3.5)


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_same_randomness_gives_the_same_and_other_examples_other_noise(name: str) -> None:
    made, batch = mechanism(name), torch.zeros(8, 6, 4, 4)
    first, _ = made.protect(batch, numpy_generator(3, "x"))
    again, _ = made.protect(batch, numpy_generator(3, "x"))
    other, _ = made.protect(batch, numpy_generator(4, "x"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) == 8


def test_the_systems_noise_is_never_the_same() -> None:
    made, batch = mechanism("clip-laplace"), torch.zeros(8, 6, 4, 4)
    assert not torch.equal(
        made.protect(batch, SystemGenerator())[0], made.protect(batch, SystemGenerator())[0]
    )


@pytest.mark.parametrize("name", [*MECHANISMS, "none", "noise"])
def test_gradients_pass_as_if_there_were_no_noise(name: str) -> None:
    made = shield(name)
    batch = (torch.rand(8, 6, 4, 4) * 0.9).requires_grad_()
    protected, secret = made.protect(batch, numpy_generator(0, "g"))
    weights = torch.rand_like(protected)
    (through,) = torch.autograd.grad((protected * weights).sum(), batch)
    clean = made.bounded(batch) if isinstance(made, Mechanism) else batch
    (wanted,) = torch.autograd.grad((clean * weights).sum(), batch)
    torch.testing.assert_close(through, wanted)
    assert torch.equal(made.restore(weights, secret), weights)


# --------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize(("name", "order"), [("clip-laplace", 1), ("clip-gaussian", 2)])
def test_no_example_is_above_the_norm(name: str, order: int, case: str) -> None:
    made = mechanism(name, clip=0.3)
    bounded = made.bounded(made.validate_input(awkward((6, 4, 4))[case]))
    norms = bounded.flatten(1).double().norm(p=order, dim=1)
    assert torch.isfinite(bounded).all()
    assert (norms <= 0.3).all()


def test_an_example_below_the_norm_is_left_as_it_is() -> None:
    batch = torch.rand(8, 6, 4, 4) / 1000
    assert torch.equal(mechanism("clip-gaussian").bounded(batch), batch)


@pytest.mark.parametrize("case", AWKWARD)
def test_batch_normalised_entries_obey_eq_2_of_paper_002(case: str) -> None:
    made = mechanism("batch-norm-laplace")
    bounded = made.bounded(made.validate_input(awkward((6, 4, 4))[case])).double()
    assert torch.isfinite(bounded).all()
    assert bounded.abs().max() <= math.sqrt(7)


def test_replacing_an_example_never_moves_a_batch_further_than_counted() -> None:
    made = mechanism("batch-norm-laplace", (300,), 64)
    per_feature = math.sqrt(63) * (2 + math.sqrt(68))
    random = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, 300, generator=random) for _ in range(10)]
    batches += [torch.zeros(64, 300), torch.linspace(-1, 1, 64)[:, None].expand(64, 300)]
    batches += [made.neighbours()[0], torch.randn(64, 300, generator=random).sign()]
    largest = 0.0
    for batch in batches:
        for value in (0.0, 1.0, -1.0, 3.0, 30.0, -1e4):
            other = batch.clone()
            other[0] = value
            moved = (made.bounded(batch) - made.bounded(other)).abs().sum(0).max()
            largest = max(largest, float(moved))
    # The bound is nearly reached, so a slip in it would show.
    assert 0.85 * per_feature < largest <= per_feature
    one, other = made.neighbours()
    assert (made.bounded(one) - made.bounded(other)).abs().sum(0).max() > 0.85 * per_feature


def test_one_entry_moves_by_what_the_paper_proves() -> None:
    made, above = mechanism("batch-norm-laplace"), torch.zeros(8, 6, 4, 4)
    above[0] = 1e3
    moved = (made.bounded(above) - made.bounded(-above)).abs().max()
    assert moved == pytest.approx(2 * math.sqrt(7), rel=1e-3)
    assert moved <= 2 * math.sqrt(7)


@pytest.mark.parametrize("case", AWKWARD)
def test_dp_a_never_exceeds_its_sensitivity(case: str) -> None:
    made = mechanism("norm-gaussian", (64, 3, 3))
    bounded = made.bounded(made.validate_input(awkward((64, 3, 3))[case])).double()
    assert bounded.min() >= 0
    assert bounded.max() < SENSITIVITY
    assert (bounded.square().sum(1) <= NormGaussian.squared_norm(64)).all()


def test_the_bound_over_channels_holds_for_any_pattern() -> None:
    made = mechanism("norm-gaussian", (7, 1, 1), 2**7)
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=7)))
    reached = made.bounded(patterns[:, :, None, None]).square().sum(1).max()
    assert reached <= NormGaussian.squared_norm(7)
    ones = mechanism("norm-gaussian", (3, 1, 1)).bounded(torch.ones(1, 3, 1, 1))
    assert float(ones.square().sum()) == pytest.approx(NormGaussian.squared_norm(3))  # reached
    assert NormGaussian.squared_norm(1) == pytest.approx(1 / 3)
    assert NormGaussian.squared_norm(7) == pytest.approx(3 / 5 + 3 / 5 + 1 / 3)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_what_leaves_is_float32(name: str, kind: torch.dtype) -> None:
    batch = torch.rand(8, 6, 4, 4).to(kind)
    assert mechanism(name).protect(batch, numpy_generator(0, "x"))[0].dtype == torch.float32


def test_statistics_for_evaluation_follow_the_batches() -> None:
    made = mechanism("batch-norm-laplace", (3,), 64)
    random = torch.Generator().manual_seed(0)
    for _ in range(80):
        made.bounded(5 + 2 * torch.randn(64, 3, generator=random))
    plain = made.eval().bounded(torch.full((2, 3), 5.0))
    assert plain.abs().max() < 0.2
    assert made.bounded(torch.full((2, 3), 7.0)).mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan])
def test_an_epsilon_that_is_no_number_above_0_is_refused(name: str, epsilon: float) -> None:
    with pytest.raises(ValidationError):
        SHIELDS[name].schema.model_validate({"epsilon": epsilon})


@pytest.mark.parametrize("name", [name for name in SHIELDS if name not in ON_GRID])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    batch = torch.zeros(8, 6, 4, 4)
    batch[5, 2, 1, 0] = value
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        shield(name).protect(batch, numpy_generator(0, "x"))


@pytest.mark.parametrize("name", ON_GRID)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_is_not_finite_tells_of_no_other_example(
    name: str, value: float, all_of_it: bool
) -> None:
    # To refuse a batch would be to answer, without noise, a question about its examples.
    made, batch = on_grid(name), awkward((6, 4, 4))["random"]
    spoilt = batch.clone()
    spoilt[5, 2, 1, 0] = value
    if all_of_it:
        spoilt[2] = value
    usual, _ = made.protect(batch, numpy_generator(0, "x"))
    got, _ = made.protect(spoilt, numpy_generator(0, "x"))
    finite = [i for i in range(8) if spoilt[i].isfinite().all()]
    assert torch.equal(got[finite], usual[finite])
    assert got.isfinite().all()


@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace"])
def test_what_is_not_finite_has_a_norm_within_the_bound(name: str) -> None:
    made = on_grid(name, (3,), clip=0.3)
    assert isinstance(made, Clipped)
    rows = torch.tensor([[math.nan] * 3, [math.inf] * 3, [-math.inf, math.nan, 1.0]])
    finite = torch.tensor([[0.0] * 3, [3.4028235e38] * 3, [-3.4028235e38, 0.0, 1.0]])
    steps = made.round_to_grid(made.validate_input(rows))
    assert torch.equal(steps, made.round_to_grid(finite))
    assert (steps.abs().pow(made.order).sum(1) <= made.grid.levels**made.order).all()
    # What is infinite weighs as much as any example may.
    assert steps[1:].double().norm(p=made.order, dim=1).min() > 0.99 * made.grid.levels


@pytest.mark.parametrize("name", SHIELDS)
@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((8, 6, 4, 5), "at most 8 of"),
        ((9, 6, 4, 4), "at most 8 of"),
        ((0, 6, 4, 4), "there is no example"),
    ],
)
def test_other_shapes_and_larger_batches_are_refused(
    name: str, shape: tuple[int, ...], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        shield(name).protect(torch.zeros(shape), numpy_generator(0, "x"))


def test_batch_normalisation_of_one_example_is_refused() -> None:
    with pytest.raises(RequestError, match="at least 2 examples, got 1"):
        shield("batch-norm-laplace", batch=1)
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        shield("batch-norm-laplace").protect(torch.zeros(1, 6, 4, 4), numpy_generator(0, "x"))


def test_dp_a_wants_channels_and_positions() -> None:
    with pytest.raises(RequestError, match="channels, height and width"):
        shield("norm-gaussian", (64,))


# ----------------------------------------------------------------------- guarantees


def delta_of_gaussian(distance: float, scale: float, epsilon: float) -> float:
    """Return the exact δ of the Gaussian mechanism (Balle and Wang 2018, Theorem 8)."""
    half, shift = distance / (2 * scale), epsilon * scale / distance
    return float(stats.norm.cdf(half - shift) - math.exp(epsilon) * stats.norm.cdf(-half - shift))


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_clipped_gaussian_has_just_its_delta(epsilon: float, delta: float) -> None:
    # Of continuous noise it would have a little less, by what discrete noise differs.
    made = mechanism("clip-gaussian", epsilon=epsilon, delta=delta, clip=2.5)
    extra = slack(1, epsilon, delta)
    assert extra < 1e-3 * epsilon
    continuous = delta_of_gaussian(2 * 2.5, made.scale, epsilon - extra)
    assert continuous == pytest.approx(delta_within_slack(delta, extra), rel=1e-6)
    assert continuous < delta
    assert (made.guarantee().epsilon, made.guarantee().delta) == (epsilon, delta)


@pytest.mark.parametrize("epsilon", [1.0, 5.0])
def test_what_dp_a_would_hold_for_an_image(epsilon: float) -> None:
    made = mechanism("norm-gaussian", (64, 4, 4), epsilon=epsilon)
    would, distance = (
        made.guarantee_in_real_numbers(),
        math.sqrt(2 * 16 * NormGaussian.squared_norm(64)),
    )
    assert would.epsilon > 10 * epsilon
    exact = delta_of_gaussian(distance, made.scale, would.epsilon)
    assert exact == pytest.approx(1e-5, rel=0.01)
    analytic = mechanism("norm-gaussian", (64, 4, 4), epsilon=epsilon, calibration="analytic")
    assert delta_of_gaussian(SENSITIVITY, analytic.scale, epsilon) == pytest.approx(1e-5, rel=1e-3)


def test_laplace_guarantees_are_distance_over_scale() -> None:
    clip = mechanism("clip-laplace", epsilon=3, clip=0.7)
    assert 2 * 0.7 / clip.scale == pytest.approx(clip.guarantee().epsilon)
    assert clip.guarantee().epsilon == 3
    counts = mechanism("counts", (7,), epsilon=0.5)
    assert 7 / counts.scale == pytest.approx(counts.guarantee().epsilon)
    assert (counts.guarantee().epsilon, counts.guarantee().delta) == (0.5, 0)
    pixels = mechanism("pixel-laplace", (1, 28, 28), epsilon=2)
    assert pixels.guarantee_in_real_numbers().epsilon == pytest.approx(784 * 2)
    batch = mechanism("batch-norm-laplace", (1280,), 64, epsilon=5, sensitivity="experiments")
    assert batch.guarantee_in_real_numbers().epsilon == pytest.approx(
        1280 * 5 * (2 + math.sqrt(68))
    )
    assert batch.claimed().unit == "element"


@pytest.mark.parametrize("name", ["clip-laplace", "counts"])
def test_laplace_noise_on_integers_is_never_less_than_epsilon_says(name: str) -> None:
    # In fractions: not even by the last bit of a float. Of a wrong rounding 1 in 300 is seen.
    random = np.random.default_rng(0)
    for epsilon in np.exp(random.uniform(-1, 8, 3_000)):
        made = on_grid(name, (5,), epsilon=float(epsilon))
        distance = 5 if name == "counts" else 2 * made.grid.levels
        assert Fraction(made.grid.scale) * Fraction(made.config.epsilon) >= distance


@pytest.mark.parametrize("name", FLOATS)
def test_noise_in_floating_point_promises_nothing_and_says_what_it_would(name: str) -> None:
    made = mechanism(name)
    held, would = made.guarantee(), made.guarantee_in_real_numbers()
    assert str(held) == "no finite ε for one record"
    assert held.reasons == (FLOATING_POINT_NOISE, f"in real numbers: {would}")
    assert would.epsilon > 2
    assert made.claimed().epsilon == 2  # which is the paper's matter


@pytest.mark.parametrize("name", ON_GRID)
def test_noise_on_a_grid_holds_what_it_would_in_real_numbers(name: str) -> None:
    made = on_grid(name)
    assert made.guarantee() == made.guarantee_in_real_numbers() == made.claimed()
    assert made.guarantee().unit == "record"
    assert "public grid" in " ".join(made.guarantee().reasons)


def test_running_statistics_bound_nothing() -> None:
    made = mechanism("batch-norm-laplace").eval()
    for guarantee in (made.guarantee(), made.guarantee_in_real_numbers()):
        assert guarantee.epsilon is None
        assert "running statistics" in guarantee.reasons[0]


@pytest.mark.parametrize("name", ["mixing", "noise", "low-resolution"])
def test_an_obfuscation_promises_nothing_and_says_why(name: str) -> None:
    made = shield(name)
    assert made.guarantee().epsilon is None
    assert made.guarantee().reasons[0].startswith("an obfuscation: ")


@pytest.mark.parametrize("name", [*MECHANISMS, "none"])
def test_without_noise_there_is_no_guarantee(name: str) -> None:
    bare = shield(name, epsilon=None) if name in MECHANISMS else shield(name)
    for guarantee in (bare.claimed(), bare.guarantee()):
        assert str(guarantee) == "no finite ε for one record"
        assert guarantee.reasons == ("no noise",)


@pytest.mark.parametrize("name", MECHANISMS)
def test_without_noise_just_the_bounded_function_leaves(name: str) -> None:
    made, batch = mechanism(name, epsilon=None), awkward((6, 4, 4))["random"]
    randomness = numpy_generator(0, "x")
    assert torch.equal(made.protect(batch, randomness)[0], made.bounded(batch))
    assert made.scale == 0
    assert randomness.random() == numpy_generator(0, "x").random()  # nothing was drawn


@pytest.mark.parametrize("name", MECHANISMS)
def test_nobody_goes_without_noise_by_leaving_it_out(name: str) -> None:
    with pytest.raises(ValidationError, match="epsilon"):
        SHIELDS[name].schema.model_validate({})


@pytest.mark.parametrize("name", BOUNDING)
def test_replacing_an_example_moves_a_batch_by_the_sensitivity_at_most(name: str) -> None:
    made = mechanism(name)
    order = 1 if made.kind == "laplace" else 2
    batches = [made.validate_input(batch) for batch in awkward((6, 4, 4)).values()]
    pairs = [made.neighbours()]
    for one, other in itertools.product(batches, batches):
        replaced = one.clone()
        replaced[0] = other[0]
        pairs.append((one, replaced))
    for function in (made.bounded, made.noise_centres):
        moved = [(function(a) - function(b)).double().norm(p=order) for a, b in pairs]
        # On a grid the distance is that of whole numbers, here rounded to float32 steps.
        rounding = 1e-6 if made.grid and function == made.noise_centres else 0
        most = made.sensitivity * (1 + rounding)
        assert max(moved) <= most
        assert moved[0] > 0.6 * made.sensitivity  # the neighbours that audits attack


@pytest.mark.parametrize("name", ["clip-gaussian", "clip-laplace"])
def test_replacing_an_example_moves_whole_numbers_by_twice_the_levels_at_most(name: str) -> None:
    made = on_grid(name)
    assert isinstance(made, Clipped)
    rows = torch.cat(
        [made.round_to_grid(made.validate_input(b)) for b in awkward((6, 4, 4)).values()]
    )
    apart = (rows[:, None] - rows[None]).abs().pow(made.order).sum(-1)
    assert int(apart.max()) <= (2 * made.grid.levels) ** made.order
    one, other = (made.round_to_grid(batch)[0] for batch in made.neighbours())
    assert int((one - other).abs().sum()) >= 2 * made.grid.levels - 2


def test_neighbouring_counts_differ_by_one_each() -> None:
    made = on_grid("counts", (7,), 3)
    one, other = (made.round_to_grid(batch) for batch in made.neighbours())
    assert (other - one).tolist() == [[1] * 7, [0] * 7, [0] * 7]
    assert made.sensitivity == 7
    assert (made.grid.step, made.grid.dtype) == (1, "int32")


def test_sensitivities_are_those_that_were_derived() -> None:
    assert mechanism("clip-laplace", clip=0.7).sensitivity == pytest.approx(1.4)
    assert mechanism("clip-gaussian", clip=2.5).sensitivity == pytest.approx(5)
    assert mechanism("pixel-laplace", (1, 28, 28)).sensitivity == 784
    batch = mechanism("batch-norm-laplace", (1280,), 64)
    assert batch.sensitivity == pytest.approx(1280 * math.sqrt(63) * (2 + math.sqrt(68)))
    assert batch.eval().sensitivity is None
    image = mechanism("norm-gaussian", (3, 4, 4))
    assert image.sensitivity == pytest.approx(math.sqrt(2 * 16 * 3 / 5))


@pytest.mark.parametrize("name", MECHANISMS)
def test_neighbours_differ_in_one_example(name: str) -> None:
    one, other = mechanism(name).neighbours()
    assert [i for i in range(8) if not torch.equal(one[i], other[i])] == [0]


def test_the_systems_generator_draws_what_numpy_draws() -> None:
    system = SystemGenerator()
    assert len(system.bytes(7)) == 7
    values = system.standard_exponential((1000, 100))
    assert stats.kstest(values.ravel(), stats.expon.cdf).pvalue > 1e-6
    assert values.dtype == np.float64


def test_dp_a_normalises_as_torch_does_with_the_papers_constants() -> None:
    shield = mechanism("norm-gaussian", (7, 5, 5), 4, epsilon=1.0)
    reference = nn.LocalResponseNorm(size=5, alpha=5.0, beta=0.5, k=2.0)
    x = torch.rand(4, 7, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(shield.bounded(x), reference(x))
    ours, theirs = (torch.autograd.grad(f(x).sum(), x)[0] for f in (shield.bounded, reference))
    torch.testing.assert_close(ours, theirs)
