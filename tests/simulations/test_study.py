"""Studies: their runs are those of `pudica run`, alone or together, killed or not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import Result
from forking import fork, wait_for

from pudica import analysis
from pudica.models.errors import RequestError
from pudica.simulations import Study, run, study
from pudica.simulations.programs.submission import read_run_record
from pudica.simulations.studies.cells import _explain_outcome
from pudica.simulations.studies.plan import (
    StudyConfig,
    build_experiments,
    expand,
    expand_grid,
    parse_seeds,
    read_plan,
    write_plan,
)
from pudica.strategies.core.recorder import lock

Command = Callable[..., Result]

THEMIS = {
    "data.limit": 120,
    "training.epochs": 1,
    "themis.epochs": 1,
    "themis.release.draws": 1,
    "themis.examiner": None,
    "participants": [[{"model": "softmax"}, {"model": "mlp"}]],
}
SPLIT = {"data.limit": 96, "split.model": "cnn-tiny", "split.epochs": 1}
DLMT = {"data.limit": 96, "dlmt.training.epochs": 1, "dlmt.cases": {"plain": {}}}
FACEMIX = {"data.limit": 96, "facemix.training.epochs": 1, "facemix.cases": {"mixed": {}}}
FOUR = [
    {"experiment": f"{name}-digits", "set": settings}
    for name, settings in {
        "themis": THEMIS,
        "split": SPLIT,
        "dlmt": DLMT,
        "facemix": FACEMIX,
    }.items()
]


def untimed(frame: pd.DataFrame, without: str = "second|_ms") -> pd.DataFrame:
    """Return measurements without those of time, and without the names of runs."""
    rows = frame[~frame["metric"].str.contains(without)]
    return rows.drop(columns="run").dropna(axis="columns", how="all").reset_index(drop=True)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Run four systems on the same data with two seeds, once for all tests."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "four.yaml"
    path.write_text(yaml.safe_dump({"experiments": FOUR, "seeds": "0-1"}))
    return study(path, out=folder / "results")


def test_every_run_is_done_and_has_a_folder(of_four: Study) -> None:
    assert of_four.status()["status"].tolist() == ["done"] * 8
    assert [cell.name for cell in of_four.cells][:2] == [
        "themis-digits,seed=0",
        "themis-digits,seed=1",
    ]
    assert all((of_four.directory / cell.name / "run.json").is_file() for cell in of_four.cells)


def test_a_run_of_a_study_is_what_the_run_alone_is(of_four: Study, tmp_path: Path) -> None:
    alone = run("split-digits", set={**SPLIT, "seed": 1}, engine="inprocess", out=tmp_path)
    own = analysis.load(of_four.directory / "split-digits,seed=1")
    # Messages hold the run's name, so their bytes differ.
    ours, other = (untimed(rows, "second|_ms|bytes") for rows in (own, alone.frame()))
    pd.testing.assert_frame_equal(ours, other)


def test_its_frame_says_the_settings_of_each_row(of_four: Study) -> None:
    frame = of_four.frame()
    assert set(frame["system"]) == {"themis", "split", "dlmt", "facemix"}
    assert frame["seed"].isin([0, 1]).all()
    own = frame[frame["run"] == "split-digits,seed=1"]
    assert (own["split.model"] == "cnn-tiny").all()
    assert (own["seed"] == 1).all()


def test_systems_are_compared_over_their_seeds(of_four: Study) -> None:
    table = of_four.compare()
    assert set(table["n"]) == {2}
    assert list(table["system"].unique()) == ["themis", "split", "dlmt", "facemix"]
    assert table[["accuracy", "accuracy_ci", "bytes", "seconds"]].notna().all(axis=None)
    known = table[table["system"] != "themis"]
    assert known["edge_mmacs"].notna().all()
    assert len(of_four.compare(spread=False)) == 2 * len(table)


@pytest.mark.parametrize("system", ["themis", "split", "dlmt", "facemix"])
def test_show_fits_80_columns(of_four: Study, system: str, pudica: Command) -> None:
    runs = sorted(of_four.directory.glob(f"{system}-digits,*"))
    for chosen in (runs[:1], runs):
        result = pudica("show", *chosen, COLUMNS="80")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 60
    assert "95% interval of 2 seeds" in " ".join(result.stdout.split())


def test_show_of_a_whole_study_fits_80_columns_too(of_four: Study, pudica: Command) -> None:
    result = pudica("show", of_four.directory, COLUMNS="80")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "±" in result.stdout
    assert "with --wide: " in result.stdout


def test_show_has_all_columns_or_those_that_are_named(of_four: Study, pudica: Command) -> None:
    run_directory = of_four.directory / "themis-digits,seed=0"
    wide = pudica("show", "--wide", run_directory).stdout
    assert "Exchanges" in wide
    assert "pixels" in wide
    chosen = pudica("show", "--columns", "psnr,kendall_tau", run_directory).stdout
    assert "psnr" in chosen
    assert "examiner" not in chosen
    assert "Leaderboard" not in chosen
    wrong = pudica("show", "--columns", "kendal_tau", run_directory)
    assert wrong.exit_code == 2
    assert "Did you mean 'kendall_tau'?" in wrong.stderr


def test_a_table_is_exported_by_its_name(of_four: Study, pudica: Command, tmp_path: Path) -> None:
    latex = pudica("table", "compare", of_four.directory, "--format", "latex").stdout
    assert latex.count(r"\\") == 1 + len(of_four.compare())
    file = tmp_path / "rows.csv"
    options = ("--format", "csv", "--rows", "-o", file)
    assert pudica("table", "compare", of_four.directory, *options).exit_code == 0
    written = pd.read_csv(file)
    rows = analysis.compare(of_four.directory, spread=False)
    pd.testing.assert_frame_equal(written, rows, check_dtype=False)
    assert "compare" in pudica("table", "list").stdout.split()


def test_the_comparison_at_the_end_shows_figures_in_80_columns(
    of_four: Study, pudica: Command
) -> None:
    output = pudica("study", "--resume", of_four.directory, COLUMNS="80").stdout
    table, _ = output.split("More:")
    assert max(map(len, table.splitlines())) <= 80
    assert "accuracy" in table.split("with `pudica table compare`")[0]


def test_all_runs_of_a_study_are_drawn(of_four: Study, pudica: Command, figures: None) -> None:
    drawn = pudica("plot", of_four.directory).stdout
    assert all(cell.name in drawn for cell in of_four.cells)


# ------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0, 2,5-6", [0, 2, 5, 6]), (7, [7]), ([1, 2], [1, 2])],
)
def test_seeds_are_written_in_many_ways(text: object, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-0", "0..4", "-1", "1,,2", True, [0.5], [-1]])
def test_what_is_no_seed_is_refused(text: object) -> None:
    with pytest.raises(RequestError, match="seed"):
        study("themis-digits", seeds=text)  # type: ignore[arg-type]


def test_a_grid_is_every_combination() -> None:
    assert list(expand_grid({"a": [1, 2], "b": 3, "c": [[4, 5], None]})) == [
        {"a": 1, "b": 3, "c": [4, 5]},
        {"a": 1, "b": 3, "c": None},
        {"a": 2, "b": 3, "c": [4, 5]},
        {"a": 2, "b": 3, "c": None},
    ]


def test_lists_of_settings_follow_each_other_and_seeds_vary_fastest() -> None:
    config = StudyConfig(
        experiments=["themis-digits"],
        set=[{"themis.M": 0.5, "themis.epochs": 2}, {"themis.M": [1, 2]}],
        seeds="0-1",
    )
    names = [cell.name for cell in expand(config)]
    assert names == [
        "themis-digits,M=0.5,epochs=2,seed=0",
        "themis-digits,M=0.5,epochs=2,seed=1",
        "themis-digits,M=1,seed=0",
        "themis-digits,M=1,seed=1",
        "themis-digits,M=2,seed=0",
        "themis-digits,M=2,seed=1",
    ]


def test_names_are_those_of_folders_and_distinct(tmp_path: Path) -> None:
    long = [f"{'x' * 150}/{number}" for number in range(3)]
    config = StudyConfig(experiments=["themis-digits"], set={"data.path": [*long, "../up", "a b"]})
    names = [cell.name for cell in expand(config)]
    assert len(set(names)) == 5
    assert all(Path(name).name == name and len(name) <= 100 for name in names)
    cells = expand(config)
    directory = tmp_path / "study"
    directory.mkdir()
    write_plan(directory, config, cells)
    assert read_plan(directory) == cells


def test_settings_that_are_the_same_in_short_are_different_runs() -> None:
    paths = ["/data/2023/faces", "/data/2024/faces"]
    config = StudyConfig(experiments=["themis-digits"], set={"data.path": paths}, seeds="0-1")
    names = [cell.name for cell in expand(config)]
    assert len(set(names)) == 4
    assert expand(config)[3].settings == {"data.path": paths[1], "seed": 1}


def test_two_processes_never_run_the_same_study(of_four: Study) -> None:
    def resume() -> None:
        with pytest.raises(RequestError, match="another process"):
            study(resume=of_four.directory)

    with closing(lock(of_four.directory)):
        assert wait_for(fork(resume)) == 0


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".", "a\nb"])
def test_a_study_has_the_name_of_a_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"name": name, "experiments": ["themis-digits"]}))
    with pytest.raises(RequestError, match="name"):
        study(path, out=tmp_path / "out")
    for other in ("..", "", "a/b"):
        path.write_text(f"cells: [{{name: '{other}', experiment: a, settings: {{}}}}]")
        with pytest.raises(RequestError, match="can't be read"):
            read_plan(tmp_path)


def test_a_run_that_leaves_nothing_says_why(tmp_path: Path) -> None:
    reason = _explain_outcome("", tmp_path)
    assert "must share this folder" in reason
    assert read_run_record(tmp_path)["reason"] == reason


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seeds": "0,0"}, "two runs of the study are the same.*seed=0"),
        ({"set": {"themis.M": [1, 1]}}, "two runs of the study are the same"),
        ({"set": {"themis.m": 1}}, r"themis-digits: --set: themis: unknown key 'm'"),
        ({"set": {"themis.M": [1, -1]}}, r"M=-1.*themis\.M"),
        ({"set": {"themis.M": list(range(1, 10_002))}}, "10001 runs; at most 10000"),
        ({"experiments": "themis-digit"}, "Did you mean 'themis-digits'"),
        ({"experiments": "gone.yaml"}, "no experiment file"),
        ({"experiments": []}, "name an experiment or a study"),
    ],
)
def test_a_wrong_study_starts_nothing(
    tmp_path: Path, request_: dict[str, object], message: str
) -> None:
    arguments = {"experiments": "themis-digits", **request_}
    with pytest.raises(RequestError, match=message):
        study(arguments.pop("experiments"), out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: []", "experiments"),
        ("experiments: [themis-digits]\nseed: 3", r"study\.yaml.*seed"),
        ("experiments: [{experiment: themis-digits, sett: {}}]", "sett"),
        ("experiments: [themis-digits]\nseeds: 4-1", "seeds"),
        ("experiments: [themis-digits]\nset: []", "set"),
    ],
)
def test_a_wrong_file_says_key_and_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        study(path, out=tmp_path / "out")


def test_experiments_of_a_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.yaml").write_text("system: split\ndata: {name: digits}\n")
    (folder / "study.yaml").write_text("experiments: [mine.yaml]\nseeds: 5")
    monkeypatch.chdir(tmp_path)
    from pudica.simulations.studies.plan import StudyConfig, read_study

    config = read_study(folder / "study.yaml", StudyConfig)
    (cell,) = expand(config)
    assert cell.name == "mine,seed=5"
    assert build_experiments([cell])[cell.name].seed == 5


# ----------------------------------------------------------------- failures, stops, kills


@pytest.mark.slow
def test_a_run_that_fails_fails_alone_and_is_resumed(tmp_path: Path, pudica: Command) -> None:
    """One of two models raises while a file is there."""
    stop = tmp_path / "stop"
    stop.touch()
    (tmp_path / "broken.py").write_text(
        "import pathlib, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, n))\n"
        "    def forward(self, x):\n"
        f"        if len(x) > 20 and pathlib.Path({str(stop)!r}).exists():\n"
        "            raise ValueError('no luck')\n"
        "        return self.inner(x)\n"
        "def net(num_classes, channels, image_size):\n"
        "    return Net(num_classes)\n"
    )
    models = ["cnn-tiny", f"custom:{tmp_path}/broken.py:net"]
    settings = {"data.limit": 96, "dlmt.training.epochs": 2, "dlmt.model": models, "dlmt.cases": {}}
    done = study("dlmt-digits", set=settings, out=tmp_path / "out")
    status = done.status().set_index("run")
    bad = done.cells[1].name
    assert status["status"].tolist() == ["done", "failed"]
    assert "no luck" in status["reason"][bad]
    assert len(done.compare()) == 1
    stop.unlink()
    result = pudica("study", "--resume", done.directory)
    assert result.exit_code == 0, result.output
    assert done.status()["status"].tolist() == ["done", "done"]
    assert str(done.directory) in result.stdout


def test_a_study_is_resumed_as_it_is(of_four: Study) -> None:
    with pytest.raises(RequestError, match="without other settings or seeds"):
        study(resume=of_four.directory, seeds="0-3")
    with pytest.raises(RequestError, match="holds no study"):
        study(resume=of_four.directory / "themis-digits,seed=0")
    with pytest.raises(RequestError, match="is a study; use pudica study --resume"):
        run(resume=of_four.directory)
    before = of_four.frame()
    again = study(resume=of_four.directory)
    pd.testing.assert_frame_equal(again.frame(), before)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("cells: [{name: ../../etc, experiment: a, settings: {}}]")
    with pytest.raises(RequestError, match=r"study\.yaml: can't be read"):
        read_plan(tmp_path)


PROGRAM = """
import sys
from pudica.simulations.cli import main
main()
"""


def start_study(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, "study", *options, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def await_rows(folder: Path, count: int) -> Path:
    """Wait until so many runs of the study in a folder have measured something."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        begun = [path for path in folder.glob("*/*/metrics.jsonl") if path.stat().st_size]
        if len(begun) >= count:
            return begun[0].parent.parent
        time.sleep(0.05)
    raise AssertionError("the study did not begin")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_killed_at_any_point_ends_with_the_same_table(
    tmp_path: Path, of_four: Study, count: int, stop: signal.Signals
) -> None:
    path = tmp_path / "four.yaml"
    path.write_text(yaml.safe_dump({"experiments": FOUR, "seeds": "0-1"}))
    process = start_study(tmp_path / "out", str(path))
    try:
        directory = await_rows(tmp_path / "out", count)
        os.kill(process.pid, stop)
    finally:
        process.wait(60)
    resumed = study(resume=directory)
    assert resumed.status()["status"].tolist() == ["done"] * 8
    pd.testing.assert_frame_equal(untimed(resumed.frame()), untimed(of_four.frame()))
    shutil.rmtree(directory)
