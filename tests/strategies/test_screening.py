"""What the organiser accepts, clips and combines."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from pudica.strategies.themis.screening import Clip, check_reach, combine, read_update

SHAPE = (2, 1, 4, 4)


def both(values: np.ndarray) -> dict[str, np.ndarray]:
    return {"mu": values[0], "rho": values[1]}


def sent(**arrays: np.ndarray) -> RecordDict:
    record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})


def ones(scale: float = 1.0) -> np.ndarray:
    return np.full(SHAPE, scale, np.float32)


def test_an_honest_reply_comes_through_unchanged() -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    assert np.array_equal(read_update(sent(**both(values)), SHAPE), values)


def lying() -> RecordDict:
    content = sent(**both(ones()))
    content.array_records["arrays"]["mu"].shape = (1, 400, 400)
    return content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (RecordDict({"metrics": MetricRecord({"loss": 1.0})}), "sent none"),
        (sent(surprise=ones()), "surprise"),
        (sent(mu=ones()[0]), "sent \\['mu'\\]"),
        (sent(**both(ones()), more=ones()), "more"),
        (sent(mu=ones()[0], rho=ones()[1, :, :2]), "rho must have shape"),
        (sent(**both(ones().astype(np.float64))), "must be float32"),
        (sent(**both(ones() * np.nan)), "with NaN"),
        (sent(**both(ones() * np.inf)), "infinity"),
        (lying(), "does not hold"),
    ],
)
def test_everything_else_is_refused_and_named(content: RecordDict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_update(content, SHAPE)


def test_states_that_adam_cannot_reach_are_refused() -> None:
    before = np.zeros((6, 1, 4, 4), np.float32)
    after = before.copy()
    after[:2] += 0.03
    check_reach(after, before, learning_rate=0.01, steps=3)
    with pytest.raises(ValueError, match="3 Adam steps reach"):
        check_reach(after + np.float32(0.5), before, learning_rate=0.01, steps=3)
    after[4:] = -1
    with pytest.raises(ValueError, match="negative second moments"):
        check_reach(after, before, learning_rate=0.01, steps=3)


@pytest.mark.parametrize("burst", [1, 15, 40])
def test_no_honest_adam_step_is_refused(burst: int) -> None:
    # The worst case for Adam is a long silence and then a burst of like gradients.
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2, 1, 1, 1))
    optimizer, moved = torch.optim.Adam([parameter], lr=0.01), []
    for step in range(3000):
        before = parameter.detach().clone().numpy()
        parameter.grad = torch.full_like(parameter, 1.0 if step >= 3000 - burst else 1e-12)
        optimizer.step()
        after = parameter.detach().numpy()
        moved.append(float(np.abs(after - before).max()))
        state = optimizer.state[parameter]
        moments = [state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()]
        ignored = np.zeros((4, 1, 1, 1), np.float32)
        check_reach(np.concatenate([after, *moments]), np.concatenate([before, ignored]), 0.01, 1)
    assert max(moved) > 0.025  # the test would not be worth much otherwise


def test_moments_that_do_not_belong_together_are_refused() -> None:
    before = np.zeros((6, 1, 4, 4), np.float32)
    after = before.copy()
    after[2:4], after[4:] = 1e3, 1e-9
    with pytest.raises(ValueError, match="do not belong together"):
        check_reach(after, before, learning_rate=0.01, steps=3)


@pytest.mark.parametrize("others", [1, 2, 4, 9])
def test_one_huge_reply_is_clipped_and_the_honest_ones_are_not(others: int) -> None:
    updates = {f"honest-{i}": ones(1 + 0.1 * i) for i in range(others)} | {"huge": ones(1e6)}
    clipped, names = Clip(3.0)(updates)
    assert names == ["huge"]
    assert all(np.array_equal(clipped[n], updates[n]) for n in updates if n != "huge")
    assert np.linalg.norm(clipped["huge"]) <= 3 * np.linalg.norm(ones(1 + 0.1 * others)) + 1e-3


def test_a_lone_huge_reply_is_clipped_by_what_came_before() -> None:
    clip = Clip(3.0)
    for _ in range(3):
        clip({"a": ones()})
    assert clip({"a": ones(1e6)})[1] == ["a"]
    # Clipped replies do not widen the bound.
    for _ in range(100):
        clip({"a": ones(1e6)})
    assert np.linalg.norm(clip({"a": ones(1e6)})[0]["a"]) < 1e6


def test_clipping_goes_on_after_a_resume_as_before() -> None:
    random = np.random.default_rng(0)
    rounds = [{"a": ones(s), "b": ones(t)} for s, t in random.exponential(size=(40, 2))]
    undisturbed, resumed = Clip(1.5), Clip(1.5)
    for updates in rounds:
        expected, names = undisturbed(updates)
        resumed = Clip(1.5, [list(norms) for norms in resumed.history])
        found, found_names = resumed(updates)
        assert names == found_names
        assert all(np.array_equal(expected[n], found[n]) for n in updates)


def test_switched_off_clipping_changes_nothing() -> None:
    updates = {"a": ones(), "b": ones(1e6)}
    assert Clip(None)(updates) == (updates, [])


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "krum"])
def test_a_rule_of_equal_updates_returns_them(rule: str) -> None:
    assert np.allclose(combine(rule, [ones(2.0)] * 5, malicious=1), 2.0)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("place", range(5))
def test_robust_rules_stay_among_the_honest(rule: str, place: int) -> None:
    honest = [ones(value) for value in (0.9, 1.0, 1.1, 1.2)]
    updates = [*honest[:place], ones(-1000.0), *honest[place:]]
    result = combine(rule, updates, malicious=1)
    assert 0.9 <= float(result.min()) <= float(result.max()) <= 1.2 + 1e-6


def test_trimmed_mean_of_few_updates_still_works() -> None:
    assert np.allclose(combine("trimmed-mean", [ones(1.0), ones(3.0)], malicious=1), 2.0)
    assert np.allclose(combine("trimmed-mean", [ones(s) for s in (1, 2, 99)], malicious=1), 2.0)
