"""FaceMix's mixing: exact to undo where the cloud is linear, anew for each request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pudica.clients.protocol import on_wire
from pudica.clients.shields import build, parse_config
from pudica.clients.shields.decoys import fill_groups
from pudica.clients.shields.draws import draw_orthogonal
from pudica.clients.shields.mixing import Mixing, MixingKey
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator

SHAPE = (3, 4, 4)


def mixing(
    group: int = 8, batch: int = 100, shape: tuple[int, ...] = SHAPE, **more: bool
) -> Mixing:
    shield = build(parse_config({"name": "mixing", "group": group, **more}), shape, batch)
    assert isinstance(shield, Mixing)
    return shield


def features(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_matrices_are_orthogonal_and_prefer_no_direction() -> None:
    """Entries of a uniform one have mean 0 and variance 1/8; 5 standard errors of 4,000 draws."""
    matrices = draw_orthogonal((4000, 8, 8), rng())
    unit = torch.eye(8).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, unit, atol=2e-6, rtol=0)
    first = matrices[:, 0, 0].double()
    assert abs(float(first.mean())) < 5 * (1 / 8 / 4000) ** 0.5
    assert float(first.var()) == pytest.approx(1 / 8, rel=0.1)
    assert 0.45 < float((torch.linalg.det(matrices) > 0).double().mean()) < 0.55


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_size_of_request_comes_back_in_its_order(group: int, shuffle: bool) -> None:
    shield = mixing(group, shuffle=shuffle)
    for count in range(1, 3 * group + 2):
        x = features(count, seed=count)
        whole = fill_groups(x, shield.config, rng(count))
        sent, key = shield.protect(whole, rng(count))
        assert len(sent) % group == 0
        assert len(sent) - count < group
        torch.testing.assert_close(shield.restore(sent, key)[:count], x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trained", [True, False])
def test_a_linear_cloud_is_undone_exactly(layout: torch.memory_format, trained: bool) -> None:
    main = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = features(24).to(memory_format=layout).requires_grad_(trained)
    shield = mixing()
    with torch.set_grad_enabled(trained):
        sent, key = shield.protect(x, rng())
        found = shield.restore(main(sent), key)
    torch.testing.assert_close(found, main(x), atol=1e-5, rtol=0)


def test_gradients_are_those_without_mixing_where_the_cloud_is_linear() -> None:
    """Eq. (9) of paper 003: an orthogonal matrix leaves the gradients as they are."""
    main, shield, found = nn.Linear(6, 4, bias=False), mixing(shape=(6,)), {}
    for name in ("plain", "mixed"):
        x = features(16, shape=(6,)).requires_grad_()
        sent, key = shield.protect(x, rng())
        outputs = shield.restore(main(sent), key) if name == "mixed" else main(x)
        main.zero_grad()
        outputs.square().sum().backward()
        assert main.weight.grad is not None
        assert x.grad is not None
        found[name] = (main.weight.grad.clone(), x.grad)
    for plain, mixed in zip(*found.values(), strict=True):
        torch.testing.assert_close(mixed, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, (5, 61, 61)], ids=["small", "in parts"])
def test_training_and_serving_mix_the_same(shape: tuple[int, ...]) -> None:
    shield, x = mixing(shape=shape), features(32, shape=shape)
    served, key = shield.protect(x, rng())
    trained, _ = shield.protect(x.clone().requires_grad_(), rng())
    torch.testing.assert_close(trained.detach(), served, atol=1e-6, rtol=0)
    torch.testing.assert_close(shield.restore(served, key), x, atol=1e-5, rtol=0)


def test_groups_of_one_are_as_they_were() -> None:
    sent, key = mixing(1).protect(x := features(5), rng())
    assert torch.equal(sent, x[key.order])


def test_what_travels_as_float16_comes_back_within_its_rounding() -> None:
    """A float16 keeps 11 bits; a sum of 8 of them with coefficients of length 1 keeps the error."""
    shield, x = mixing(), features(64)
    sent, key = shield.protect(x, rng())
    error = (shield.restore(sent.half(), key) - x).abs().max()
    assert float(error) < 8**0.5 * 2**-11 * float(sent.abs().max())


def test_features_may_be_float16_and_too_large_for_it() -> None:
    shield, x = mixing(), features(16)
    sent, key = shield.protect(x.half(), rng())
    assert sent.dtype == torch.float32
    torch.testing.assert_close(shield.restore(sent, key), x, atol=1e-2, rtol=0)
    largest = float(torch.finfo(torch.float16).max)
    far, _ = shield.protect(1e6 * x, rng())
    wired = on_wire(far, "float16")
    assert wired.dtype == np.float16
    assert np.isfinite(wired).all()
    np.testing.assert_array_equal(wired[far.numpy() > largest], largest)


def test_keys_differ_in_each_group_and_request() -> None:
    shield, x = mixing(), features(16)
    keys: list[MixingKey] = [shield.protect(x, source)[1] for source in (rng(0), rng(1))]
    system = SystemGenerator()
    keys += [shield.protect(x, system)[1] for _ in range(2)]
    matrices = torch.cat([key.matrices for key in keys])
    apart = (matrices[:, None] - matrices[None]).abs().amax((2, 3))
    assert float((apart + torch.eye(len(matrices))).min()) > 0.01
    orders = [tuple(key.order.tolist()) for key in keys]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("wire", [torch.float32, torch.float16])
def test_what_fills_a_group_is_no_combination_of_what_crosses(wire: torch.dtype) -> None:
    """Not behind linear layers either: it would show a group, and what is in it, without a key."""
    for seed in range(20):
        images = features(9, seed, (1, 16, 16)) + features(1, 99, (1, 16, 16))
        rows = fill_groups(images, mixing().config, rng(seed)).flatten(1)
        sent, _ = mixing(shape=(256,)).protect(rows, rng(seed))
        alone, _ = mixing(shape=(256,)).protect(rows[:8], rng(seed))
        assert least(sent.to(wire)) > 0.1 * least(alone.to(wire)) > 1


def least(rows: torch.Tensor) -> float:
    """Return the smallest singular value of rows."""
    return float(torch.linalg.svdvals(rows.double()).min())


def test_a_key_is_not_printed() -> None:
    _, key = mixing().protect(features(8), rng())
    assert "tensor" not in repr(key)


@pytest.mark.parametrize(
    ("settings", "count", "why"),
    [
        ({"group": 8, "pad": False}, 20, "20 examples are not whole groups of 8; send a multiple"),
        ({"group": 8, "pad": False}, 5, "5 examples are not whole groups of 8; send a multiple"),
        ({"group": 8}, 0, "there is no example"),
    ],
)
def test_what_can_not_be_mixed_says_why(settings: dict, count: int, why: str) -> None:
    shield = mixing(**settings)
    with pytest.raises(ValueError, match=why):
        shield.protect(fill_groups(features(count), shield.config, rng()), rng())


def test_what_fills_no_group_is_not_mixed() -> None:
    with pytest.raises(ValueError, match="20 examples are not whole groups of 8"):
        mixing().protect(features(20), rng())


def test_no_group_is_smaller_than_one() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        parse_config({"name": "mixing", "group": 0})


def test_an_answer_with_other_rows_is_refused() -> None:
    sent, key = mixing().protect(features(16), rng())
    with pytest.raises(ValueError, match="15 rows came back of 16"):
        mixing().restore(sent[:15], key)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (5, 61, 61)], ids=["small", "in parts"])
def test_infinite_features_are_refused(shape: tuple[int, ...], trained: bool, value: float) -> None:
    x = features(16, shape=shape)
    x[3, -1, 0, 0] = value
    if value == float("inf"):
        x[4, -1, 0, 0] = -value
    with pytest.raises(ValueError, match="NaN or infinity"):
        mixing(shape=shape).protect(x.requires_grad_(trained), rng())


def test_noise_has_its_variance_and_low_resolution_its_pixels() -> None:
    """The variance of 40,000 draws: within 5 standard errors of 4."""
    noise = build(parse_config({"name": "noise", "variance": 4}), (1, 20, 20), 100)
    zeros = torch.zeros(100, 1, 20, 20)
    found = float(noise.protect(zeros, rng())[0].var())
    assert found == pytest.approx(4, abs=5 * 4 * (2 / 40_000) ** 0.5)
    blurred = build(parse_config({"name": "low-resolution", "side": 1}), SHAPE, 4)
    x = features(4)
    torch.testing.assert_close(
        blurred.protect(x, rng())[0], x.mean((2, 3), keepdim=True).expand_as(x)
    )
    with pytest.raises(RequestError, match="not a lower resolution"):
        build(parse_config({"name": "low-resolution", "side": 5}), SHAPE, 4)
