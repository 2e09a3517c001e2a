from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from written_runs import competition_rows, write_run

from pudica import analysis
from pudica.simulations.engines import inprocess
from pudica.strategies.loading import load_experiment

Write = Callable[..., Path]


def test_one_run_shows_its_leaderboard_in_full(small_run: Write) -> None:
    tables = analysis.tables(small_run())
    assert list(tables) == [
        "Leaderboard",
        "Protection",
        "Beside the paper",
        "Runs",
        "Exchanges",
        "Durations",
    ]
    assert tables["Leaderboard"]["model"].tolist() == ["ResNet-56", "LeNet"]
    assert "run" not in tables["Protection"]
    assert tables["Runs"]["bytes_received"].tolist() == [20]
    assert tables["Durations"]["seconds"].tolist() == [0.5, 2.0]


def test_several_runs_stand_side_by_side(small_run: Write, tmp_path: Path) -> None:
    small_run("a")
    small_run("b")
    tables = analysis.tables(tmp_path)
    board = tables["Leaderboard"]
    assert list(board.columns) == [
        "model",
        "rank (a)",
        "rank (b)",
        "plain_accuracy (a)",
        "plain_accuracy (b)",
        "trained_accuracy (a)",
        "trained_accuracy (b)",
    ]
    assert (board["rank (a)"] == board["rank (b)"]).all()
    assert tables["Protection"]["run"].unique().tolist() == ["a", "b"]
    assert list(tables["Durations"].columns) == ["stage", "seconds (a)", "seconds (b)"]
    assert len(tables["Runs"]) == 2


def test_rows_follow_the_first_run_and_may_be_missing_in_another(tmp_path: Path) -> None:
    for name, values in {"a": {"B": 0.8, "A": 0.6}, "b": {"A": 0.9, "C": 0.7}}.items():
        rows = competition_rows(values, values, {"main": values})
        write_run(tmp_path / name, rows, list(values))
    board = analysis.tables(tmp_path)["Leaderboard"]
    assert board["model"].tolist() == ["B", "A", "C"]
    assert board["rank (b)"].tolist() == [None, 1, 2]


def test_several_cases_show_their_ranks(tmp_path: Path) -> None:
    values = {"Softmax": 0.5, "MLP": 0.6}
    rows = competition_rows(values, values, {"case0": values, "other": values})
    cases = {"case0": {}, "other": {}}
    path = write_run(tmp_path / "run", rows, list(values), cases=cases)
    tables = analysis.tables(path)
    assert {"Leaderboard, case0", "Leaderboard, other"} <= set(tables)
    # Columns that would be empty, such as the published ones, are left out.
    assert list(tables["Ranks in each case"].columns) == [
        "model",
        "original_rank",
        "case0_alphabetical",
        "other",
    ]
    assert "Beside the paper" not in tables


def test_missing_ranks_are_none(tmp_path: Path) -> None:
    values = {"LeNet": 0.5, "VGG19": 0.6}
    rows = competition_rows(values, values, {"main": values})
    tables = analysis.tables(write_run(tmp_path / "run", rows, list(values)))
    assert tables["Beside the paper"]["plain_rank_published"].tolist() == [10, None]


def test_a_run_that_is_still_running_shows_what_there_is(tmp_path: Path) -> None:
    tables = analysis.tables(write_run(tmp_path / "run", [], ["A"], status="running"))
    assert list(tables) == ["Runs"]
    assert tables["Runs"]["status"].tolist() == ["running"]


def test_a_real_run_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUDICA_CACHE", str(tmp_path / "cache"))
    overrides = ["data.limit=120", "training.epochs=1", "themis.examiner=null", "themis.epochs=1"]
    overrides += ["themis.release.draws=2", "participants=[{model: softmax}, {model: mlp}]"]
    inprocess.run(load_experiment("themis-digits", overrides), tmp_path / "run")
    tables = analysis.tables(tmp_path / "run")
    written = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
    pd.testing.assert_frame_equal(tables["Leaderboard"], written, check_dtype=False)
    rows = analysis.load(tmp_path / "run")
    logged = rows[(rows["metric"] == "kendall_tau") & (rows["release"] == "trained")]["value"]
    table = analysis.themis_protection(tmp_path / "run").set_index("release")
    assert table["kendall_tau"]["trained"] == pytest.approx(logged.iloc[0], nan_ok=True)
    assert len(analysis.plot(tmp_path / "run")) == 4
