"""Split learning from the command line, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import as_options
from click.testing import Result

from pudica.analysis.split import split_accuracy
from pudica.strategies.loading import shipped

Command = Callable[..., Result]

TINY = {
    "data.limit": "96",
    "split.model": "cnn-tiny",
    "split.epochs": "1",
    "split.optimizer": "{learning_rate: 0.1, momentum: 0.9}",
}


@pytest.fixture
def run_split(pudica: Command) -> Command:
    """Run tiny split learning in this process: ``run_split("--quiet", seed=…)``."""

    def call(*options: object, **settings: str) -> Result:
        chosen = as_options({**TINY, **{k.replace("__", "."): v for k, v in settings.items()}})
        return pudica("run", "split-digits", "--engine", "inprocess", *chosen, *options)

    return call


@pytest.mark.usefixtures("figures")
def test_a_run_ends_with_its_tables_its_figures_and_its_directory(run_split: Command) -> None:
    result = run_split("--out", "out")
    assert result.exit_code == 0
    directory = Path(result.stdout.splitlines()[-1])
    assert directory.parent == Path("out").absolute()
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    for title in ("Test accuracy", "What a device pays, per epoch and per batch", "Plots"):
        assert title in result.stdout
    assert "plots/training.png" in result.stdout
    assert "claimed" in result.stdout
    files = ("releases.json", "main/model.safetensors", "main/costs.csv", "plots/training.png")
    assert all((directory / name).is_file() for name in files)
    (row,) = split_accuracy(directory).to_dict("records")
    words = result.stdout.split()
    assert f"{row['plain_edge']:.2f}" in words
    assert f"{row['noisy_cloud']:.2f}" in words


def test_quiet_prints_the_directory_only(run_split: Command) -> None:
    result = run_split("--quiet")
    assert result.exit_code == 0
    assert Path(result.stdout.removesuffix("\n")).is_dir()
    assert result.stderr == ""


def test_list_shows_the_experiments_of_split_learning(pudica: Command) -> None:
    result = pudica("list")
    assert result.exit_code == 0
    own = [name for name in shipped() if name.startswith("split-")]
    assert {"split-digits", "split-laplace-mnist", "split-record-dp-mnist"} <= set(own)
    for name in own:
        assert any(line.split()[:1] == [name] for line in result.stdout.splitlines())


@pytest.mark.usefixtures("figures")
def test_show_plot_and_privacy_of_a_run(run_split: Command, pudica: Command) -> None:
    runs = [run_split("--quiet", seed=seed).stdout.strip() for seed in ("0", "1")]
    shown = pudica("show", runs[0])
    assert shown.exit_code == 0
    assert "no finite ε for one record" in shown.stdout
    for columns in (80, 120):
        both = pudica("show", *runs, COLUMNS=str(columns))
        assert both.exit_code == 0
        assert all(Path(run).name in both.stdout for run in runs)
        assert max(map(len, both.stdout.splitlines())) <= columns
    (Path(runs[0]) / "plots/training.png").unlink()
    drawn = pudica("plot", runs[0])
    assert [Path(line).name for line in drawn.stdout.split()] == ["training.png"]
    assert (Path(runs[0]) / "plots/training.png").is_file()
    ledger = pudica("privacy", runs[0])
    assert ledger.exit_code == 0
    assert "front gradients and statistics are released in the clear" in ledger.stdout


def test_a_run_that_is_done_is_not_run_again(run_split: Command, pudica: Command) -> None:
    directory = Path(run_split("--quiet").stdout.strip())
    before = (directory / "metrics.jsonl").read_bytes()
    result = pudica("run", "--resume", directory)
    assert result.exit_code == 0
    assert "is done already" in result.stderr
    assert (directory / "metrics.jsonl").read_bytes() == before


def learnt(directory: Path) -> list[str]:
    """Return a run's measurements but the bytes, of which its name's length is a part."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return sorted(line for line in lines if json.loads(line)["stage"] != "costs")


def test_a_file_runs_like_its_name(run_split: Command, pudica: Command) -> None:
    first = Path(run_split("--quiet").stdout.strip())
    again = pudica("run", first / "experiment.yaml", "--engine", "inprocess", "--quiet")
    assert again.exit_code == 0
    second = Path(again.stdout.strip())
    assert learnt(first) == learnt(second)


def test_dropouts_are_counted_on_the_error_stream(
    run_split: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pudica.clients.split.edge import Edge

    original, failed = Edge.smash, []

    def smash(self: Edge, epoch: int, step: int, count: int, turn: int) -> object:
        if self.assignment.partition == 1 and step == 1 and not failed:
            failed.append(True)
            raise RuntimeError("not today")
        return original(self, epoch, step, count, turn)

    monkeypatch.setattr(Edge, "smash", smash)
    result = run_split()
    assert result.exit_code == 0
    assert "1 dropouts: " in result.stderr
    assert "events.log says whose and why" in result.stderr


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"split__cut": "nowhere"}, "split: unknown cut 'nowhere'"),
        ({"split__shield": "{name: clip}"}, "unknown shield 'clip'"),
        ({"split__weights": "no.safetensors"}, "split: weights: there is no file"),
    ],
)
def test_a_wrong_request_is_explained_and_leaves_nothing(
    run_split: Command, setting: dict[str, str], why: str
) -> None:
    result = run_split("--out", "out", **setting)
    assert result.exit_code == 2
    assert why in result.stderr
    assert not Path("out").exists()
