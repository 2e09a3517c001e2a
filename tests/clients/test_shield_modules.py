"""Shields stand alone: modules with keyword arguments, bound by the first tensor they see."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from pudica.clients.shields import (
    SHIELDS,
    AdditiveNoise,
    BatchNormLaplace,
    ClipGaussian,
    ClipLaplace,
    Counts,
    LowResolution,
    Mixing,
    NoPeek,
    NormGaussian,
    NoShield,
    PixelLaplace,
    Quantise,
    Shield,
    build,
    parse_config,
)
from pudica.models.errors import RequestError
from pudica.models.randomness import numpy_generator

SHAPE, BATCH = (3, 4, 4), 8
SHIELDS_ALONE: list[tuple[type[Shield], dict[str, Any]]] = [
    (AdditiveNoise, {"variance": 8.0}),
    (BatchNormLaplace, {"epsilon": 5, "sensitivity": "experiments"}),
    (ClipGaussian, {"epsilon": 3, "delta": 1e-5, "clip": 1.0}),
    (ClipLaplace, {"epsilon": 3}),
    (Counts, {"epsilon": 1}),
    (LowResolution, {"side": 2}),
    (Mixing, {"group": 4}),
    (NoPeek, {"weight": 0.5}),
    (NoShield, {}),
    (NormGaussian, {"epsilon": 6, "delta": 1e-5, "calibration": "analytic"}),
    (PixelLaplace, {"epsilon": 2}),
    (Quantise, {"bits": 3, "low": -1.0}),
]


def features(count: int = BATCH, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(count))


def name_of(kind: type[Shield]) -> str:
    return str(kind.schema.model_fields["name"].default)


def test_all_are_tried_here() -> None:
    assert {kind for kind, _ in SHIELDS_ALONE} == {*SHIELDS.values()}


@pytest.mark.parametrize(("kind", "settings"), SHIELDS_ALONE)
def test_an_experiment_builds_the_very_same(kind: type[Shield], settings: dict[str, Any]) -> None:
    alone = kind(**settings)
    assert isinstance(alone, nn.Module)
    assert not alone.is_bound
    built = build(parse_config({"name": name_of(kind), **settings}), SHAPE, BATCH)
    assert type(built) is kind
    assert built.config == alone.config
    values = [s.protect(features(), numpy_generator(0, "noise"))[0] for s in (alone, built)]
    assert torch.equal(*values)
    assert (alone.shape, alone.batch_size) == (SHAPE, BATCH) == (built.shape, built.batch_size)
    assert alone.guarantee() == built.guarantee()
    assert alone.claimed() == built.claimed()
    assert alone.state_dict().keys() == built.state_dict().keys()


@pytest.mark.parametrize(("kind", "settings"), SHIELDS_ALONE)
def test_it_is_a_callable_with_noise_of_the_system(
    kind: type[Shield], settings: dict[str, Any]
) -> None:
    shield = kind(**settings)
    x = features().requires_grad_()
    out = shield(x)
    assert out.shape == x.shape
    assert bool(out.isfinite().all())
    if kind not in (LowResolution, NoPeek, NoShield, Quantise):
        assert not torch.equal(shield(x), shield(x))
    out.sum().backward()
    assert x.grad is not None


def test_what_is_mixed_is_restored_by_its_secret() -> None:
    shield, x = Mixing(group=4), features()
    mixed, secret = shield.protect(x)
    torch.testing.assert_close(shield.restore(mixed, secret), x, atol=1e-5, rtol=0)
    again = shield.unpack_secret(shield.pack_secret(secret))
    assert torch.equal(shield.restore(mixed, again), shield.restore(mixed, secret))
    with pytest.raises(ValueError, match="6 examples are not whole groups of 4"):
        shield.protect(features(6))


def test_guarantees_that_do_not_depend_on_the_shape_are_known_at_once() -> None:
    assert str(ClipGaussian(epsilon=3).guarantee()) == "ε = 3 (δ = 1e-05) for one record"
    assert ClipLaplace(epsilon=None).guarantee().epsilon is None
    shield = BatchNormLaplace(epsilon=5)
    assert str(shield.claimed()) == "ε = 5 for one element"
    with pytest.raises(RequestError, match="BatchNormLaplace: its shape is not known yet"):
        shield.guarantee()
    held = shield.bind((4,), 64).guarantee()
    assert held.epsilon is None
    assert "in real numbers: ε" in held.reasons[1]


def test_a_learnt_batch_size_grows_unless_the_noise_depends_on_it() -> None:
    shield = ClipGaussian(epsilon=3)
    for count in (1, 3, 64, 2):
        shield(features(count))
    assert shield.batch_size == 64
    bound = ClipGaussian(epsilon=3).bind(SHAPE, 2)
    with pytest.raises(RequestError, match=r"3 examples of \(3, 4, 4\), .* at most 2 of"):
        bound(features(3))
    normed = BatchNormLaplace(epsilon=5)
    normed(features(4))
    scale = normed.scale
    normed(features(3))
    with pytest.raises(RequestError, match=r"got 5 examples .* at most 4 of \(3, 4, 4\)"):
        normed(features(5))
    assert normed.scale == scale


@pytest.mark.parametrize(("kind", "settings"), SHIELDS_ALONE)
def test_another_shape_than_bound_is_named(kind: type[Shield], settings: dict[str, Any]) -> None:
    shield = kind(**settings)
    shield(features())
    with pytest.raises(
        RequestError,
        match=rf"{kind.__name__}: got 8 examples of \(3, 5, 5\), it is bound .* of \(3, 4, 4\)",
    ):
        shield(features(shape=(3, 5, 5)))


@pytest.mark.parametrize(("kind", "settings"), SHIELDS_ALONE)
def test_it_can_be_copied_to_a_worker(kind: type[Shield], settings: dict[str, Any]) -> None:
    shield = kind(**settings)
    shield(features())
    for again in (copy.deepcopy(shield), pickle.loads(pickle.dumps(shield))):
        assert again.config == shield.config
        assert (again.shape, again.batch_size) == (SHAPE, BATCH)


def test_signatures_say_what_the_schema_says() -> None:
    assert str(inspect.signature(ClipGaussian)) == (
        "(*, epsilon: float | None, delta: float = 1e-05, clip: float = 1.0)"
    )
    for kind, _ in SHIELDS_ALONE:
        names = set(inspect.signature(kind).parameters)
        assert names == set(kind.schema.model_fields) - {"name"}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ClipGaussian, {}, "ClipGaussian: the argument 'epsilon' is missing"),
        (ClipGaussian, {"epsilon": -1}, r"ClipGaussian: epsilon = -1: must be .*above 0"),
        (ClipGaussian, {"epsilon": "much"}, "ClipGaussian: epsilon = 'much': must be a number"),
        (ClipGaussian, {"epsilon": 1, "delta": 1}, "delta = 1: must be above 0 and below 1"),
        (ClipGaussian, {"epsilon": 1, "clips": 2}, "unknown argument 'clips'. Did you mean 'clip'"),
        (ClipGaussian, {"epsilon": 1, "name": "mixing"}, "unknown argument 'name'"),
        (
            ClipLaplace,
            {"epsilon": 1e-12},
            "ClipLaplace: epsilon: 1e-12 is too small for noise on a grid",
        ),
        (BatchNormLaplace, {"epsilon": 5, "sensitivity": "all"}, "'analysis' or 'experiments'"),
        (Mixing, {"group": 0}, "Mixing: group = 0: must be .*at least 1 and at most 1024"),
        (NoPeek, {"weight": -1}, "NoPeek: weight = -1: must be .*at least 0"),
        (NoShield, {"epsilon": 1}, "NoShield: unknown argument 'epsilon'"),
        (Quantise, {"bits": 9}, "Quantise: bits = 9: must be .*at least 1 and at most 8"),
        (Quantise, {"low": 1.0}, "Quantise: high: must be above low, 1, is 1"),
    ],
)
def test_wrong_arguments_are_named(
    kind: type[Shield], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("shield", "shape", "batch", "message"),
    [
        (NormGaussian(epsilon=1), (5,), 8, "NormGaussian: needs channels, height and width"),
        (LowResolution(side=16), (3, 8, 8), 8, "LowResolution: 16x16 is not a lower resolution"),
        (BatchNormLaplace(epsilon=1), (5,), 1, "BatchNormLaplace: .* at least 2 examples, got 1"),
        (ClipLaplace(epsilon=1), (2**11, 2**10), 1, "2097152 features of an example; allowed"),
        (ClipLaplace(epsilon=1), (5, 0), 1, r"whole numbers from 1 on, are \(5, 0\) and 1"),
        (ClipLaplace(epsilon=1), (5,), 0, "whole numbers from 1 on"),
    ],
)
def test_what_does_not_fit_is_refused_and_binds_nothing(
    shield: Shield, shape: tuple[int, ...], batch: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        shield.bind(shape, batch)
    assert not shield.is_bound


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ([[1.0]], r"a tensor \(B, …\), got list"),
        (torch.zeros(4), r"a tensor \(B, …\), got \(4,\)"),
        (torch.zeros(0, 4), "no example"),
    ],
)
def test_what_is_no_batch_is_refused(tensor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipLaplace(epsilon=1)(tensor)
