import json
import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from written_runs import accuracy_rows, row, write_run

from pudica import analysis
from pudica.models.errors import RequestError

COLUMNS = [
    "run",
    "system",
    "experiment",
    "case",
    "stage",
    "round",
    "node",
    "metric",
    "value",
    "release",
    "M",
    "draw",
]
Write = Callable[..., Path]


def test_a_run_is_one_tidy_frame(small_run: Write) -> None:
    path = small_run()
    frame = analysis.load(path)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len((path / "metrics.jsonl").read_text().splitlines())
    assert frame["round"].dtype.kind == "i"
    assert all(frame[name].dtype.kind == "f" for name in ("value", "M", "draw"))
    assert not frame[["run", "system", "experiment", "case", "node", "release"]].isna().any().any()
    local = frame[frame["stage"] == "local"]
    assert (local["release"] == "").all()
    assert local["M"].isna().all()


def test_the_order_of_arrival_does_not_matter(small_run: Write) -> None:
    path = small_run()
    metrics = path / "metrics.jsonl"
    before = analysis.load(path)
    for seed in range(3):
        lines = metrics.read_text().splitlines()
        random.Random(seed).shuffle(lines)
        metrics.write_text("\n".join(lines) + "\n")
        pd.testing.assert_frame_equal(analysis.load(path), before)


def test_nodes_keep_the_experiments_order(tmp_path: Path) -> None:
    rows = accuracy_rows("plain", {"B": 0.5, "A": 0.5, "C": 0.5}, 0.0)
    path = write_run(tmp_path / "run", rows, ["C", "A", "B"])
    assert analysis.load(path)["node"].tolist() == ["C", "A", "B"]


def test_unknown_tags_become_columns_at_the_end(tmp_path: Path) -> None:
    rows = [row("attack", "success", 0.5, epsilon=3.0), row("attack", "success", 0.4)]
    frame = analysis.load(write_run(tmp_path / "run", rows, ["A"]))
    assert list(frame.columns) == [*COLUMNS, "epsilon"]
    assert frame["epsilon"].isna().sum() == 1


def test_a_run_without_measurements_gives_an_empty_frame(tmp_path: Path) -> None:
    frame = analysis.load(write_run(tmp_path / "run", [], ["A"], status="running"))
    assert frame.empty
    assert list(frame.columns) == COLUMNS


def test_values_that_are_no_number_stay_missing(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", [row("leaderboard", "kendall_tau", float("nan"))], ["A"])
    assert analysis.load(path)["value"].isna().all()


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_a_last_line_cut_off_is_left_out(small_run: Write, kept: int) -> None:
    path = small_run()
    lines = (path / "metrics.jsonl").read_text().splitlines()
    whole = analysis.load(path)
    (path / "metrics.jsonl").write_text("\n".join([*lines, lines[0][:kept]]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: the last line is cut off"):
        pd.testing.assert_frame_equal(analysis.load(path), whole)


@pytest.mark.parametrize("broken", ['{"stage": "local", "rou', "[1, 2]", '{"stage": "local"}'])
@pytest.mark.parametrize("number", [2, -1])
def test_a_line_broken_elsewhere_is_named(small_run: Write, broken: str, number: int) -> None:
    path = small_run()
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[number] = broken
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    place = range(len(lines))[number] + 1
    with pytest.raises(RequestError, match=rf"metrics\.jsonl, line {place}: not a measurement"):
        analysis.load(path)


def test_folders_globs_and_lists_find_runs(small_run: Write, tmp_path: Path) -> None:
    first, second = small_run("seed0"), small_run("seed1", seed=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "seed-notes.txt").touch()
    both = [first, second]
    assert analysis.find(tmp_path) == both
    assert analysis.find(f"{tmp_path}/seed*") == both
    assert analysis.find(tmp_path / "*") == both
    assert analysis.find([str(second), first, tmp_path]) == [second, first]
    assert analysis.load(tmp_path)["run"].unique().tolist() == ["seed0", "seed1"]


def test_a_directory_with_brackets_is_taken_literally(small_run: Write) -> None:
    assert len(analysis.find(small_run("lambda[5]"))) == 1


def test_runs_of_the_same_name_stay_apart(small_run: Write, tmp_path: Path) -> None:
    for name in ("a/x/run", "b/x/run", "b/y/run", "other"):
        small_run(name)
    frame = analysis.load([tmp_path / "a", tmp_path / "b", tmp_path / "other"])
    assert frame["run"].unique().tolist() == ["a/x/run", "b/x/run", "y/run", "other"]


def test_nothing_found_is_said(tmp_path: Path) -> None:
    for place in (tmp_path / "none", f"{tmp_path}/none*"):
        with pytest.raises(RequestError, match=r"nothing found at .*none"):
            analysis.load(place)
    with pytest.raises(RequestError, match="no run was named"):
        analysis.load([])


def test_what_a_directory_lacks_is_named(small_run: Write) -> None:
    path = small_run()
    (path / "metrics.jsonl").unlink()
    with pytest.raises(RequestError, match=r"run is no run.*lacks metrics\.jsonl$"):
        analysis.load(path)
    with pytest.raises(RequestError, match=r"run\.json is a file"):
        analysis.load(path / "run.json")


def test_a_damaged_description_is_named(small_run: Write) -> None:
    path = small_run()
    (path / "run.json").write_text("{")
    with pytest.raises(RequestError, match=r"run\.json: can't be read"):
        analysis.load(path)
    (path / "run.json").write_text("[]")
    with pytest.raises(RequestError, match=r"run\.json: must hold a mapping"):
        analysis.load(path)


def test_describe_gives_run_and_experiment(small_run: Write, tmp_path: Path) -> None:
    path = small_run(seed=3)
    description = analysis.describe(path)
    assert description["seed"] == 3
    assert description["directory"] == path
    assert description["settings"]["data"]["name"] == "cifar10"
    json.dumps(description["settings"])
    small_run("second")
    with pytest.raises(RequestError, match="holds 2 runs, name one of them: run, second"):
        analysis.describe(tmp_path)
