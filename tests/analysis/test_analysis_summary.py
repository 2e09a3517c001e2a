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


def test_runs_of_the_same_seed_are_not_taken_together(small_run: Write, tmp_path: Path) -> None:
    small_run("a")
    small_run("b")
    tables = analysis.tables(tmp_path)
    board = tables["Leaderboard"]
    assert list(board.columns[:4]) == ["run", "rank", "model", "trained_accuracy"]
    assert board["run"].tolist() == ["a", "a", "b", "b"]
    assert board["n"].tolist() == [1, 1, 1, 1]
    assert tables["Protection"]["run"].unique().tolist() == ["a", "b"]
    assert not {"Durations", "Exchanges"} & set(tables)
    assert len(tables["Runs"]) == 2


def test_seeds_are_taken_together(small_run: Write, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.6, 0.8)):
        values = {"A": accuracy, "B": 0.7}
        rows = competition_rows(values, values, {"main": values})
        write_run(tmp_path / f"seed{seed}", rows, list(values), seed=seed)
    tables = analysis.tables(tmp_path)
    board = tables["Leaderboard"].set_index("model")
    assert "run" not in board
    assert board["trained_accuracy"].to_dict() == pytest.approx({"A": 70, "B": 70})
    assert board["rank"].tolist() == [1.5, 1.5]
    assert board["n"].tolist() == [2, 2]
    assert {"Durations", "Exchanges"} <= set(tables)
    assert len(tables["Runs"]) == 2


def test_several_cases_show_their_ranks(tmp_path: Path) -> None:
    values = {"Softmax": 0.5, "MLP": 0.6}
    rows = competition_rows(values, values, {"case0": values, "other": values})
    cases = {"case0": {}, "other": {}}
    path = write_run(tmp_path / "run", rows, list(values), cases=cases)
    tables = analysis.tables(path)
    assert tables["Leaderboard"]["case"].tolist() == ["case0", "case0", "other", "other"]
    # Columns that would be empty, such as the published ones, are left out.
    assert list(tables["Ranks in each case"].columns) == [
        "model",
        "original_rank",
        "case0_alphabetical",
        "other",
        "n",
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
    board = tables["Leaderboard"][list(written)]
    pd.testing.assert_frame_equal(board, written, check_dtype=False)
    rows = analysis.load(tmp_path / "run")
    logged = rows[(rows["metric"] == "kendall_tau") & (rows["release"] == "trained")]["value"]
    table = analysis.themis_protection(tmp_path / "run").set_index("release")
    assert table["kendall_tau"]["trained"] == pytest.approx(logged.iloc[0], nan_ok=True)
    assert len(analysis.plot(tmp_path / "run")) == 4
