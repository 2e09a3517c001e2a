"""The audit refutes what is wrong, and nothing that is right."""

from __future__ import annotations

import pytest
from scipy import stats

from analysis.audit import _lower, _upper, audit
from clients.shields import SHIELDS, Mechanism, build
from clients.shields.laplace import ClipLaplace

RECORD_LEVEL = ("clip-laplace", "clip-gaussian")


def mechanism(name: str, shape: tuple[int, ...], batch: int, **settings) -> Mechanism:
    made = build(SHIELDS[name][0].model_validate(settings), shape, batch)
    assert isinstance(made, Mechanism)
    return made


@pytest.mark.parametrize("sensitivity", ["analysis", "experiments"])
@pytest.mark.parametrize("epsilon", [1, 2, 5])
def test_the_claim_of_paper_002_is_refuted_for_a_record(sensitivity: str, epsilon: float) -> None:
    made = mechanism("batch-norm-laplace", (80, 4, 4), 64, epsilon=epsilon, sensitivity=sensitivity)
    result = audit(made, samples=4000)
    assert result.refutes(result.claimed)
    assert not result.refutes(result.held)


@pytest.mark.parametrize("epsilon", [1, 3])
def test_the_claim_of_paper_004_is_refuted_for_an_image(epsilon: float) -> None:
    result = audit(mechanism("norm-gaussian", (64, 16, 16), 4, epsilon=epsilon), samples=2000)
    assert result.refutes(result.claimed)
    assert not result.refutes(result.held)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("epsilon", [0.5, 1, 3])
@pytest.mark.parametrize("name", RECORD_LEVEL)
def test_no_guarantee_for_a_record_is_refuted(name: str, epsilon: float, seed: int) -> None:
    # 30 audits at 95 %: seeds are fixed, and the loss is at its worst, so this could fail.
    made = (
        mechanism(name, (32,), 4, epsilon=epsilon, delta=1e-3)
        if "gauss" in name
        else (mechanism(name, (32,), 4, epsilon=epsilon))
    )
    result = audit(made, samples=20_000, seed=seed)
    assert not result.refutes(result.held)
    assert result.lower_bound > 0.2 * epsilon  # it does see something


class Careless(ClipLaplace):
    """Adds half the noise that its ε needs."""

    @property
    def scale(self) -> float:
        return super().scale / 2


def test_too_little_noise_is_found() -> None:
    config = SHIELDS["clip-laplace"][0].model_validate({"epsilon": 1})
    result = audit(Careless(config, (32,), 4), samples=20_000)
    assert result.refutes(result.held)
    assert 1 < result.lower_bound <= 2


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (1, 50), (25, 50), (50, 50)])
def test_intervals_are_clopper_and_pearsons(successes: int, trials: int) -> None:
    interval = stats.binomtest(successes, trials).proportion_ci(0.9, "exact")
    assert _lower(successes, trials, 0.05) == pytest.approx(interval.low)
    assert _upper(successes, trials, 0.05) == pytest.approx(interval.high)


def test_audits_repeat() -> None:
    made = mechanism("clip-laplace", (32,), 4, epsilon=1)
    assert audit(made, 1000, seed=3) == audit(made, 1000, seed=3)
    assert audit(made, 1000, seed=3) != audit(made, 1000, seed=4)
