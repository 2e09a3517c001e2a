"""Seeds taken together: means and intervals as SciPy has them, and of independent runs only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from written_runs import competition_rows, write_run

from pudica import analysis
from pudica.analysis.runs import Run, open_runs
from pudica.analysis.split import _average_devices
from pudica.analysis.spread import (
    average_seeds,
    compute_interval,
    describe_spread,
    drop_columns,
    flatten,
    group_by_seed,
    is_figure,
    join_intervals,
    keep_columns,
    label_variants,
    shorten_keys,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


def run_of(name: str, seed: int, **settings: object) -> Run:
    info = {"experiment": "digits", "system": "themis", "seed": seed, "status": "done"}
    return Run(name, Path(name), info, {"name": "digits", "seed": seed, **settings})


@given(st.lists(FINITE, min_size=2, max_size=30))
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    series = pd.Series(values)
    half = compute_interval(pd.Series([series.std()]), pd.Series([len(values)]))[0]
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=max(stats.sem(values), 1e-300)
    )
    assert half == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-6)


@given(st.lists(st.one_of(FINITE, st.just(math.nan)), min_size=2, max_size=8))
def test_missing_figures_do_not_count(values: list[float]) -> None:
    runs = [run_of(f"run{seed}", seed) for seed in range(len(values))]
    rows = [{"run": run.name, "case": "a", "x": x} for run, x in zip(runs, values, strict=True)]
    (row,) = average_seeds(pd.DataFrame(rows), runs, ["case"]).to_dict("records")
    there = [value for value in values if not math.isnan(value)]
    assert row["n"] == len(values)
    if not there:
        assert math.isnan(row["x"])
        return
    assert row["x"] == pytest.approx(np.mean(there), abs=1e-6)
    if len(there) < 2:
        assert math.isnan(row["x_ci"])
    else:
        expected = stats.t.ppf(0.975, len(there) - 1) * stats.sem(there)
        assert row["x_ci"] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_true_mean_lies_in_19_of_20_intervals() -> None:
    """With 4,000 groups the share is within 0.95 ± 0.0135 in 99.99 % of all seeds; this is one."""
    values = np.random.default_rng(0).normal(3, 2, (4_000, 5))
    half = compute_interval(pd.Series(values.std(1, ddof=1)), pd.Series([5] * 4_000))
    covered = np.abs(values.mean(1) - 3) <= half
    assert abs(covered.mean() - 0.95) < 0.0135


def test_a_single_run_keeps_its_numbers_and_types() -> None:
    table = pd.DataFrame({"run": ["a"], "case": ["x"], "rank": [1], "accuracy": [0.5]})
    found = average_seeds(table, [run_of("a", 0)], ["case"])
    pd.testing.assert_frame_equal(found[list(table)], table)
    assert found["n"].tolist() == [1]
    assert found[["rank_ci", "accuracy_ci"]].isna().all(axis=None)
    assert describe_spread(found) == ""
    assert list(join_intervals(found)) == list(table)


def test_rows_of_each_run_are_there_without_spread() -> None:
    table = pd.DataFrame({"run": ["a", "b"], "case": ["x", "x"], "accuracy": [0.5, 0.7]})
    runs = [run_of("a", 0), run_of("b", 1)]
    assert average_seeds(table, runs, ["case"], spread=False) is table


def test_groups_are_runs_of_equal_settings() -> None:
    runs = [
        run_of("a", 0, themis={"M": 0.5}),
        run_of("b", 1, themis={"M": 0.5}),
        run_of("c", 0, themis={"M": 1.0}),
        run_of("d", 1, themis={"M": 1.0}),
        run_of("e", 0, themis={"M": 2.0}),
    ]
    groups = group_by_seed(runs)
    assert groups == {
        "a": "digits M=0.5",
        "b": "digits M=0.5",
        "c": "digits M=1",
        "d": "digits M=1",
        "e": "e",
    }


def test_the_same_seed_twice_is_no_second_measurement() -> None:
    runs = [run_of("a", 0), run_of("b", 1), run_of("again", 0)]
    assert group_by_seed(runs) == {"a": "digits", "b": "digits", "again": "again"}
    four = [*runs, run_of("again1", 1)]
    assert len(set(group_by_seed(four).values())) == 2
    assert len(set(group_by_seed([run_of("a", 0), run_of("b", 0)]).values())) == 2


def test_a_run_that_is_not_done_is_no_seed_of_its_group() -> None:
    stopped = run_of("stopped", 2)
    stopped.info["status"] = "failed"
    table = pd.DataFrame({"run": ["a", "b", "stopped"], "x": [1.0, 3.0, 90.0]})
    runs = [run_of("a", 0), run_of("b", 1), stopped]
    found = average_seeds(table, runs, []).set_index("run")
    assert found["x"].to_dict() == {"digits": 2, "stopped": 90}
    assert found["n"].to_dict() == {"digits": 2, "stopped": 1}


def test_descriptions_and_loggers_do_not_tell_runs_apart() -> None:
    runs = [run_of("a", 0, description="one"), run_of("b", 1, description="two", log=["wandb"])]
    assert set(group_by_seed(runs).values()) == {"digits"}


def test_what_differs_in_texts_is_counted() -> None:
    runs = [run_of("a", 0), run_of("b", 1)]
    table = pd.DataFrame({"run": ["a", "b"], "key": ["1f", "2e"], "same": ["s", "s"]})
    (row,) = average_seeds(table, runs, []).to_dict("records")
    assert (row["key"], row["same"]) == ("2 different", "s")


def test_published_figures_have_no_interval() -> None:
    runs = [run_of("a", 0), run_of("b", 1)]
    table = pd.DataFrame({"run": ["a", "b"], "x": [1.0, 2.0], "x_published": [3.0, 3.0]})
    (row,) = average_seeds(table, runs, []).to_dict("records")
    assert row["x_published"] == 3
    assert "x_published_ci" not in row


def test_a_figure_and_its_interval_share_a_cell() -> None:
    table = pd.DataFrame(
        {
            "run": ["g", "h"],
            "x": [1.234, 5.0],
            "big": [12345.6, 23456.7],
            "same": [2.0, 2.0],
            "x_ci": [0.5, math.nan],
            "big_ci": [10.0, 20.0],
            "same_ci": [0.0, 0.0],
            "n": [3, 3],
        }
    )
    joined = join_intervals(table)
    assert joined["x"].tolist() == ["1.23 ± 0.50", "5.00"]
    assert joined["big"].tolist() == ["12346 ± 10", "23457 ± 20"]
    assert joined["same"].tolist() == ["2.00", "2.00"]
    assert list(joined) == ["run", "x", "big", "same"]
    assert all(is_figure(joined[name]) for name in ("x", "big", "same"))
    assert not is_figure(joined["run"])
    assert describe_spread(table) == "mean and 95% interval of 3 seeds"
    assert describe_spread(table.assign(n=[3, 2])) == "mean and 95% interval of n seeds"
    assert "n" in join_intervals(table.assign(n=[3, 2]))


def test_large_figures_are_whole_numbers_with_and_without_intervals() -> None:
    table = pd.DataFrame({"bytes": [6923353.0, math.nan], "seconds": [20.96, 1234.5]})
    joined = join_intervals(table)
    assert joined["bytes"].tolist()[0] == "6923353"
    assert pd.isna(joined["bytes"].tolist()[1])
    assert joined["seconds"].tolist() == [20.96, 1234.5]
    assert is_figure(joined["bytes"])


def test_intervals_go_with_their_figures() -> None:
    table = pd.DataFrame(
        {"run": ["a"], "x": [1.0], "y": [2.0], "x_ci": [0.1], "y_ci": [0.2], "n": 2}
    )
    assert list(keep_columns(table, ["run", "y"])) == ["run", "y", "y_ci", "n"]
    assert list(drop_columns(table, ["x"])) == ["run", "y", "y_ci", "n"]


def test_costs_of_many_devices_are_of_a_mean_device_over_seeds() -> None:
    runs = [run_of(name, seed) for seed, name in enumerate("ab")]
    rows = [
        {"run": run.name, "case": "x", "node": f"device-{i}", "bytes_up": 10.0 * seed + i}
        for seed, run in enumerate(runs)
        for i in range(3)
    ]
    (row,) = average_seeds(_average_devices(pd.DataFrame(rows)), runs, ["case"]).to_dict("records")
    assert (row["devices"], row["bytes_up"], row["n"]) == (3, 6, 2)
    low, high = stats.t.interval(0.95, 1, 6, stats.sem([1, 11]))
    assert row["bytes_up_ci"] == pytest.approx((high - low) / 2)


def test_labels_say_what_differs_within_an_experiment() -> None:
    variants = [
        {"": "a", "themis.M": 1.0, "x.rate": 1, "y.rate": 2},
        {"": "a", "themis.M": 0.5, "x.rate": 2, "y.rate": 3},
        {"": "b", "themis.M": 7.0},
    ]
    assert label_variants(variants) == [
        "a M=1 x.rate=1 y.rate=2",
        "a M=0.5 x.rate=2 y.rate=3",
        "b",
    ]
    assert shorten_keys(["rate", "x.rate"]) == ["rate", "x.rate"]
    assert flatten({"a": {"b": [{"c": 1}, {"c": 2}]}, "d": [1, 2], "e": {}}) == {
        "a.b.0.c": 1,
        "a.b.1.c": 2,
        "d": [1, 2],
        "e": {},
    }


def test_all_systems_are_compared_in_one_table(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.6, 0.8)):
        values = {"A": accuracy, "B": 0.7}
        rows = competition_rows(values, values, {"main": values})
        write_run(tmp_path / f"seed{seed}", rows, list(values), seed=seed)
    (row,) = analysis.compare(tmp_path).to_dict("records")
    assert row["accuracy"] == pytest.approx(70)
    assert (row["system"], row["data"], row["claimed"], row["n"]) == (
        "themis",
        "cifar10",
        "nothing",
        2,
    )
    assert row["holds"] == "no finite ε for one record"
    assert row["seconds"] == pytest.approx(2.5)
    # These runs are of a version that did not count bytes by stage.
    assert math.isnan(row["bytes"])
    assert len(analysis.compare(tmp_path, spread=False)) == 2
    assert [run.name for run in open_runs(tmp_path)] == ["seed0", "seed1"]
