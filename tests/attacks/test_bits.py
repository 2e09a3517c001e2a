"""The low bits of noise in floating point name the record; whole numbers have no low bits.

An attacker with 600 candidates for a released row asks of each whether the difference can be noise
at all (Mironov 2012). Noise is seeded so that the tests repeat; the attacker does not know it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from pudica.clients.shields import SHIELDS, build
from pudica.clients.shields.base import draw_noise
from pudica.clients.shields.integers import Clipped
from pudica.models.randomness import SecretGenerator

CANDIDATES, FEATURES, EPSILON = 600, 32, 3.0
CLIPPED = ("clip-gaussian", "clip-laplace")
ALARM = 1e-6
"""How often a test may fail by chance, with other seeds."""

Floats = NDArray[np.float32]


class Guesses(NamedTuple):
    """What an attack makes of released rows.

    Attributes
    ----------
    left : array of shape (R, C)
        Which candidates are possible.
    named, likeliest : int
        How often the right one is named: with the bits, and by likelihood alone.
    """

    left: NDArray[np.bool_]
    named: int
    likeliest: int


@pytest.fixture(params=CLIPPED)
def shield(request: pytest.FixtureRequest) -> Clipped:
    config = SHIELDS[request.param].schema.model_validate({"epsilon": EPSILON})
    made = build(config, (FEATURES,), CANDIDATES)
    assert isinstance(made, Clipped)
    return made


@pytest.fixture
def activations() -> torch.Tensor:
    """Return candidates with a norm of 5 or so, which is clipped to 1."""
    return torch.randn(CANDIDATES, FEATURES, generator=torch.Generator().manual_seed(0))


def secret(purpose: str) -> SecretGenerator:
    return SecretGenerator(bytes(range(32)), purpose.encode())


def in_floating_point(shield: Clipped, batch: torch.Tensor) -> Floats:
    """Return what the shield would release if it added float32 noise of its scale."""
    bounded = shield.bounded(shield.validate_input(batch))
    noise = draw_noise(shield.kind, tuple(bounded.shape), shield.scale, secret("floats"))
    released: Floats = (bounded + noise).numpy()
    return released


def on_the_grid(shield: Clipped, batch: torch.Tensor) -> Floats:
    released: Floats = shield.protect(batch, secret("grid"))[0].numpy()
    return released


def can_be_noise(released: Floats, candidates: Floats, scale: float) -> NDArray[np.bool_]:
    """Tell of each entry whether some float32 z has ``candidate + z·scale == released``.

    In float32 arithmetic, as noise was added. Where the sum is finer than the product, or as fine,
    only the next few z come into question.
    """
    factor, found = np.float32(scale), np.zeros(candidates.shape, bool)
    nearest = ((released.astype(np.float64) - candidates) / scale).astype(np.float32)
    for step in range(-3, 4):
        z = (nearest.view(np.int32) + np.int32(step)).view(np.float32)
        found |= candidates + z * factor == released
    return found


def log_likelihoods(shield: Clipped, released: Floats, candidates: Floats) -> NDArray[np.float64]:
    apart = (released.astype(np.float64) - candidates) / shield.scale
    size = np.abs(apart).sum(1) if shield.kind == "laplace" else (apart**2).sum(1) / 2
    return np.asarray(-size)


def attack(
    shield: Clipped, released: Floats, candidates: Floats, right: NDArray[np.intp]
) -> Guesses:
    """Name the candidate with the fewest impossible entries, of these the likeliest."""
    left, named, likeliest = [], 0, 0
    for row, true in zip(released, right.tolist(), strict=True):
        impossible = (~can_be_noise(row, candidates, shield.scale)).sum(1)
        likely = log_likelihoods(shield, row, candidates)
        left.append(impossible == 0)
        named += int(np.lexsort((-likely, impossible))[0]) == true
        likeliest += int(likely.argmax()) == true
    return Guesses(np.array(left), named, likeliest)


def most_named(releases: int) -> float:
    """Return how often any attack names the right one at most, if the guarantee holds.

    Under ε at most e^ε/(e^ε + C − 1) of the time: the chance of a name is multiplied by no more
    than e^ε when another record is the right one. δ = 10⁻⁵ adds less than a hundredth of it.
    """
    rate = math.exp(EPSILON) / (math.exp(EPSILON) + CANDIDATES - 1) + 1e-5
    return float(stats.binom.isf(ALARM, releases, rate))


def test_low_bits_of_noise_in_floating_point_name_the_record(
    shield: Clipped, activations: torch.Tensor
) -> None:
    right = np.arange(0, CANDIDATES, 10)
    released = in_floating_point(shield, activations[right])
    candidates = shield.bounded(activations).numpy()
    got = attack(shield, released, candidates, right)
    print(
        f"possible {got.left.sum(1).mean():.1f}, named {got.named} of 60, likeliest {got.likeliest}"
    )
    assert got.left[np.arange(60), right].all()  # the right one is always possible
    assert got.left.sum(1).mean() < 5  # of 600
    assert got.named > 30  # of 60
    # By likelihood alone, which is all that the ε is about, hardly anybody is.
    assert got.likeliest <= most_named(60) < 15


def test_on_the_grid_no_candidate_is_impossible(shield: Clipped, activations: torch.Tensor) -> None:
    grid = shield.grid
    assert grid
    released = torch.from_numpy(on_the_grid(shield, activations[::10]))
    steps = grid.to_integers(released).astype(np.int64)
    centres = shield.round_to_grid(activations).numpy()
    for i, row in enumerate(steps):
        # All differences are whole numbers, each of which the noise may be; and with it, what
        # leaves is the same to the last bit.
        noise = row - centres
        assert noise.dtype == np.int64
        again = grid.to_values(grid.clamp(centres + noise))
        assert len(again) == CANDIDATES
        assert (again.view(torch.int32) == released[i].view(torch.int32)).all()


@pytest.mark.parametrize("known", ["activations", "steps"])
def test_on_the_grid_low_bits_name_nobody(
    shield: Clipped, activations: torch.Tensor, known: str
) -> None:
    # The attack that works on floats, on a release of every candidate. It knows the activations,
    # or what they are rounded to. False alarms: 1e-6 for each bound.
    right = np.arange(CANDIDATES)
    released = on_the_grid(shield, activations)
    function = shield.bounded if known == "activations" else shield.noise_centres
    got = attack(shield, released, function(activations).numpy(), right)
    print(f"named {got.named} of {CANDIDATES}, likeliest {got.likeliest}")
    assert got.named <= most_named(CANDIDATES)
    # It is no better than likelihood alone: of all right names no more than half are its own, but
    # for chance.
    either = got.named + got.likeliest
    assert got.named <= stats.binom.isf(ALARM, either, 0.5) + 1
    # Nor does it rule out the wrong ones: the right one is as impossible as any.
    kept = got.left[right, right].sum()
    others = (got.left.sum() - kept) / (CANDIDATES * (CANDIDATES - 1))
    assert stats.binomtest(int(kept), CANDIDATES, float(others)).pvalue > ALARM


def test_the_bound_on_naming_is_one_that_the_attack_on_floats_breaks(
    shield: Clipped, activations: torch.Tensor
) -> None:
    # So that the tests above would see it.
    right = np.arange(CANDIDATES)
    released = in_floating_point(shield, activations)
    got = attack(shield, released, shield.bounded(activations).numpy(), right)
    assert got.named > 5 * most_named(CANDIDATES)
    kept = got.left[right, right].sum()
    others = (got.left.sum() - kept) / (CANDIDATES * (CANDIDATES - 1))
    assert stats.binomtest(int(kept), CANDIDATES, float(others)).pvalue < ALARM
