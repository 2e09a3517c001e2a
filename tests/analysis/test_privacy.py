"""The ledger says what was released, how much of a record it gives away, and why."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from scipy.optimize import brentq
from written_ledgers import (
    CLIPPED,
    CLIPPED_L1,
    NORMALISED,
    entry,
    in_the_clear,
    labels,
    write_ledger,
)

from pudica.analysis.privacy import (
    NUMBERS,
    SEEDED,
    STEERED,
    TRAINED,
    Release,
    privacy,
    releases,
    verdict,
)
from pudica.clients.shields import SHIELDS, build
from pudica.clients.shields.base import FLOATING_POINT_NOISE
from pudica.clients.shields.grid import delta_within_slack, slack
from pudica.models.errors import RequestError

Ledger = Callable[..., Path]
RECORD_OF_5 = 1280 * 5 * (2 + math.sqrt(68))  # NORMALISED's ε of a record, in batches of 64


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    def write(*entries: dict[str, Any]) -> Path:
        return write_ledger(tmp_path / "run", entries)

    return write


def noise(shield: dict[str, Any]) -> float:
    """Return the scale of a clipping shield's noise, of which 2 is the distance of a record."""
    return build(SHIELDS[shield["name"]].schema.model_validate(shield), (16,), 64).scale


def gaussian_epsilon(ratio: float, count: int = 0, delta: float = 1e-5) -> float:
    """Return ε of Gaussian noise by Theorem 8 of Balle and Wang 2018, for distance/σ = ratio.

    With a count: of so many releases with discrete noise, which cost as much as this one.
    """
    if count:
        extra = slack(count, gaussian_epsilon(ratio, delta=delta), delta)
        return gaussian_epsilon(ratio, delta=delta_within_slack(delta, extra)) + extra

    def excess(epsilon: float) -> float:
        left, right = ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio
        return stats.norm.cdf(left) - math.exp(epsilon + stats.norm.logcdf(right)) - delta

    return float(brentq(excess, 0, 1e3, xtol=1e-10))


# ----------------------------------------------------------------------------- entries


def test_entries_are_read_as_they_were_written(ledger: Ledger) -> None:
    written = [entry(), labels(node="device-1", sampling="shuffled"), entry(shield=NORMALISED)]
    read = releases(ledger(*written))
    assert [json.loads(json.dumps(dataclasses.asdict(one))) for one in read] == written
    assert read[0] == Release(**{**entry(), "shape": (16,)})


def test_what_never_came_about_is_no_release(ledger: Ledger) -> None:
    run = ledger(entry(), in_the_clear("front gradients", count=0))
    assert [one.what for one in releases(run)] == ["smashed data"]
    assert verdict(run)["main"].epsilon is not None


def test_an_empty_ledger_is_an_empty_table(ledger: Ledger) -> None:
    run = ledger()
    assert len(privacy(run)) == 0
    assert "composed_epsilon" in privacy(run)
    assert verdict(run) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"releases\.json: can't be read: Invalid JSON"),
        ("{}", "can't be read: Input should be a valid"),
        ("[1]", "can't be read: entry 0: "),
        (json.dumps([entry(), {"case": "main"}]), "entry 1: node: Field required"),
        (json.dumps([entry(epsilon=3)]), "entry 0: epsilon: Unexpected keyword"),
        (json.dumps([entry(count="often")]), "entry 0: count: Input should be a valid integer"),
        (json.dumps([entry(count=-1)]), "entry 0: count: "),
        (json.dumps([entry(records="mine")]), "entry 0: records: Input should be 'training'"),
        (json.dumps([entry(shield={"name": "veil"})]), "entry 0: unknown shield 'veil'"),
        (json.dumps([entry(shield={"epsilon": 3})]), "entry 0: must be a section with a name"),
        (json.dumps([entry(shield={**CLIPPED, "epsilon": -3})]), "entry 0: shield: epsilon: "),
        (json.dumps([entry(shield={"name": "norm-gaussian", "epsilon": 1})]), "needs channels"),
    ],
)
def test_a_damaged_ledger_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        releases(write_ledger(tmp_path / "run", text))


def test_a_run_without_a_ledger_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"keeps no ledger .* it lacks releases\.json"):
        privacy(write_ledger(tmp_path / "one", None))
    with pytest.raises(RequestError, match="THEMIS competition promises no differential privacy"):
        verdict(write_ledger(tmp_path / "other", None, system="themis"))


# ------------------------------------------------------------------------------ table


def test_nodes_with_equal_releases_share_a_row(ledger: Ledger) -> None:
    own = [entry(node=f"device-{i}", count=5 + i) for i in range(3)]
    other = [entry(node="device-0", shield={**CLIPPED, "epsilon": 1.0})]
    frame = privacy(ledger(*own, *other, labels()))
    assert frame[["what", "nodes", "count"]].to_numpy().tolist() == [
        ["smashed data", 3, 7],
        ["smashed data", 1, 5],
        ["labels", 1, 5],
    ]


def test_a_row_says_what_one_and_all_releases_give_away(ledger: Ledger) -> None:
    [row] = privacy(ledger(entry())).to_dict("records")
    assert row["claimed"] == "ε = 3 (δ = 1e-05) for one record"
    assert (row["record_epsilon"], row["record_delta"]) == (3, 1e-5)
    exact = gaussian_epsilon(math.sqrt(5) * 2 / noise(CLIPPED), count=5)
    assert row["composed_epsilon"] == pytest.approx(exact, rel=1e-7)
    assert exact < row["composed_rdp"] < 1.2 * exact
    assert row["mechanism"] == "clip-gaussian"
    assert row["randomness"] == "secret"


def test_delta_is_that_of_all_releases(ledger: Ledger) -> None:
    run = ledger(entry())
    exact = gaussian_epsilon(math.sqrt(5) * 2 / noise(CLIPPED), count=5, delta=1e-3)
    assert privacy(run, delta=1e-3)["composed_epsilon"][0] == pytest.approx(exact, rel=1e-7)
    assert verdict(run, delta=1e-3)["main"].delta == 1e-3
    with pytest.raises(RequestError, match="delta: must be between 0 and 1"):
        privacy(run, delta=0)


def test_a_claim_for_an_element_is_told_from_what_holds(ledger: Ledger) -> None:
    [row] = privacy(ledger(entry(shield=NORMALISED, shape=[80, 4, 4]))).to_dict("records")
    assert row["claimed"] == "ε = 5 for one element"
    # Its noise is in floating point: nothing holds. What would in real numbers is named.
    assert all(math.isnan(row[key]) for key in NUMBERS)
    assert FLOATING_POINT_NOISE in row["reasons"]
    assert f"in real numbers: ε = {RECORD_OF_5:.4g} for one record" in row["reasons"]
    assert any(reason.startswith("claimed: S = √(N−1) as measured") for reason in row["reasons"])


def test_a_shield_in_floating_point_leaves_no_verdict(ledger: Ledger) -> None:
    held = verdict(ledger(entry(), entry(what="more", shield=NORMALISED, shape=[80, 4, 4])))["main"]
    assert str(held) == "no finite ε for one record"
    would = f"ε = {RECORD_OF_5:.4g} for one record"
    assert held.reasons == (f"more: {FLOATING_POINT_NOISE}", f"more: in real numbers: {would}")


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        (labels(), "declared public"),
        (in_the_clear("front gradients"), "released in the clear"),
        (entry(shield={"name": "none"}), "released in the clear"),
        (entry(shield={**CLIPPED, "epsilon": None}), "no noise"),
        (entry(randomness="none"), "no noise"),
        (entry(shield=NORMALISED, mode="eval"), "running statistics do not bound an activation"),
    ],
)
def test_a_row_without_a_guarantee_has_no_epsilon(
    ledger: Ledger, release: dict[str, Any], reason: str
) -> None:
    [row] = privacy(ledger(release)).to_dict("records")
    assert all(math.isnan(row[key]) for key in ("record_epsilon", "composed_epsilon"))
    assert math.isnan(row["composed_rdp"])
    assert reason in row["reasons"]


def test_a_trained_front_makes_releases_of_one_record_tell_of_others(ledger: Ledger) -> None:
    [row] = privacy(ledger(entry(trained_front=True))).to_dict("records")
    assert row["record_epsilon"] == 3
    assert math.isnan(row["composed_epsilon"])
    assert TRAINED in row["reasons"]


def test_rows_say_how_examples_and_noise_were_drawn(ledger: Ledger) -> None:
    [row] = privacy(ledger(entry(sampling="shuffled", randomness="seeded"))).to_dict("records")
    assert {SEEDED, "sampling: shuffled"} < set(row["reasons"])


# ---------------------------------------------------------------------------- verdict


def test_nodes_do_not_add_up_and_the_worst_one_counts(ledger: Ledger) -> None:
    counts = {"device-0": 2, "device-1": 9, "device-2": 5}
    held = verdict(ledger(*(entry(node=n, count=c) for n, c in counts.items()), labels()))
    exact = gaussian_epsilon(math.sqrt(9) * 2 / noise(CLIPPED), count=9)
    assert held["main"].epsilon == pytest.approx(exact, rel=1e-7)
    assert (held["main"].unit, held["main"].delta) == ("record", 1e-5)
    assert held["main"].reasons[0] == "smashed data: a record is released 9 times at most"
    assert "labels are public" in held["main"].reasons


def test_kinds_of_release_of_one_record_add_up(ledger: Ledger) -> None:
    more = entry(what="second look", shield={**CLIPPED, "epsilon": 1.0}, count=1)
    held = verdict(ledger(entry(count=2), more))["main"]
    log_ratios = [math.sqrt(2) * 2 / noise(CLIPPED), 2 / noise({**CLIPPED, "epsilon": 1.0})]
    exact = gaussian_epsilon(math.hypot(*log_ratios), count=3)
    assert held.epsilon == pytest.approx(exact, rel=1e-7)
    assert "second look: a record is released once at most" in held.reasons


def test_pure_releases_of_one_kind_are_randomised_responses(ledger: Ledger) -> None:
    held = verdict(ledger(entry(shield=CLIPPED_L1, count=40)))["main"]
    lies = stats.binom(40, 1 / (1 + math.e))

    def delta(epsilon: float) -> float:
        losses = ((k, 40 - 2 * k) for k in range(41))
        return sum(
            lies.pmf(k) * -math.expm1(epsilon - loss) for k, loss in losses if loss > epsilon
        )

    assert delta(held.epsilon) == pytest.approx(1e-5, rel=1e-3)
    assert delta(held.epsilon) <= 1e-5
    assert held.epsilon < 40


def test_other_records_are_not_a_training_records_business(ledger: Ledger) -> None:
    run = ledger(entry(count=1), in_the_clear("test features", records="test"))
    assert verdict(run)["main"].epsilon == pytest.approx(3)


def test_a_case_that_releases_nothing_private_costs_nothing(ledger: Ledger) -> None:
    held = verdict(ledger(labels(), in_the_clear("right answers", records="test")))["main"]
    assert (held.epsilon, held.delta) == (0, 0)
    assert "labels are public" in held.reasons


def test_cases_are_judged_apart(ledger: Ledger) -> None:
    held = verdict(ledger(entry(), in_the_clear("front weights", case="handoff")))
    assert list(held) == ["main", "handoff"]
    assert held["main"].epsilon is not None
    assert held["handoff"].epsilon is None


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        (in_the_clear("front gradients"), "front gradients are released in the clear"),
        (entry(what="x", shield={"name": "none"}), "x are released in the clear"),
        (labels(public=False), "labels are released in the clear"),
        (entry(shield={**CLIPPED, "epsilon": None}), "smashed data are released without noise"),
        (entry(randomness="none"), "smashed data are released without noise"),
        (
            entry(shield=NORMALISED, mode="eval"),
            "smashed data: running statistics do not bound an activation",
        ),
        (entry(trained_front=True), (TRAINED, STEERED)),
        # What a trained front makes of a test image tells of the training data as well.
        (entry(what="test features", records="test", trained_front=True), (TRAINED, STEERED)),
        # As before releases were whole numbers.
        (entry(integers=False), f"smashed data: {FLOATING_POINT_NOISE}"),
    ],
)
def test_one_release_without_a_guarantee_leaves_none(
    ledger: Ledger, release: dict[str, Any], reason: str | tuple[str, ...]
) -> None:
    held = verdict(ledger(entry(), release))["main"]
    assert str(held) == "no finite ε for one record"
    assert held.reasons == ((reason,) if isinstance(reason, str) else reason)


def test_every_reason_is_named_once(ledger: Ledger) -> None:
    nodes = ("device-0", "device-1")
    run = ledger(
        *(entry(node=node, shield=NORMALISED, trained_front=True) for node in nodes),
        *(entry(node=node, shield={**CLIPPED, "epsilon": None}) for node in nodes),
        *(in_the_clear("front gradients", node=node, trained_front=True) for node in nodes),
    )
    assert verdict(run)["main"].reasons == (
        f"smashed data: {FLOATING_POINT_NOISE}",
        f"smashed data: in real numbers: ε = {RECORD_OF_5 / 80:.4g} for one record",
        "smashed data are released without noise",
        "front gradients are released in the clear",
        TRAINED,
        STEERED,
    )


def test_seeded_noise_is_an_assumption(ledger: Ledger) -> None:
    assert SEEDED in verdict(ledger(entry(randomness="seeded")))["main"].reasons


def test_secret_noise_is_none(ledger: Ledger) -> None:
    assert SEEDED not in verdict(ledger(entry(randomness="secret")))["main"].reasons
