"""The command line as a user meets it: exit codes, what is printed where, stopping and resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from cli_helpers import TINY, as_options
from click.testing import Result
from forking import fork, wait_for

from pudica.simulations.cli import main

Command = Callable[..., Result]

PUDICA = (sys.executable, "-c", "from pudica.simulations.cli import main; main()")
# Takes its time where the environment says so, so that a test can step in; computes the same.
SLOW = """
import os, time, torch

class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().forward(x.flatten(1))

def model(num_classes, channels, image_size):
    return Slow(channels * image_size**2, num_classes)
"""
HEAVY = ("torch", "ray", "flwr", "pandas", "numpy", "pydantic", "matplotlib")
IMPORTS = f"""
import sys
from typer.testing import CliRunner
from pudica.simulations.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
assert "Usage" in result.output
print(*[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["show", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", IMPORTS, *arguments]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "\n"


def test_list_shows_experiments_data_and_models(pudica: Command) -> None:
    result = pudica("list")
    assert result.exit_code == 0
    for word in ("themis-digits ", "✓ digits", "· mnist", "resnet-20 ", "custom:FILE.py"):
        assert word in result.stdout


def test_cuts_shows_what_each_cut_costs(pudica: Command) -> None:
    result = pudica("cuts", "VGG-small", "--input", "1x28x28")
    assert result.exit_code == 0
    assert "0.13   MaxPool2d" in result.stdout
    assert "The best cut by that cost is after '0.0'" in result.stdout
    assert pudica("cuts", "lenet", "--input", "3x64x32").exit_code == 0


def test_cuts_shows_what_three_stages_cost_as_paper_003_has_it(pudica: Command) -> None:
    model = ("torchvision:resnet18", "--input", "3x218x178", "--classes", "80")
    result = pudica("cuts", *model, "--post", "flatten")
    rows = {
        line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()
    }
    for pre, parameters, mmacs in (
        ("maxpool", 50576, "91.31"),
        ("layer1.0", 124560, "273.78"),
        ("layer1.1", 198544, "456.26"),
    ):
        _, crosses, *numbers = rows[pre]
        assert (crosses, numbers[:2]) == ("64x55x45", [str(parameters), mmacs])
        assert numbers[3:] == [str(4 * 64 * 55 * 45), "2048"]


def test_audit_refutes_the_claim_and_not_what_holds(pudica: Command) -> None:
    result = pudica(
        "audit",
        "batch-norm-laplace",
        "--set",
        "epsilon=2",
        "--shape",
        "10x4x4",
        "--samples",
        "1000",
    )
    assert result.exit_code == 0
    assert "ε = 2 for one element" in result.stdout
    assert "the claim, read for a record: REFUTED\n" in result.stdout
    assert "floating-point noise identifies its record by its last bits" in result.stdout
    assert "what holds: promises nothing" in result.stdout


# ------------------------------------------------------------------------- a run


@pytest.mark.usefixtures("figures")
def test_the_last_line_is_the_directory(run_tiny: Command) -> None:
    result = run_tiny("--out", "out")
    directory = Path(result.stdout.splitlines()[-1])
    assert result.exit_code == 0
    assert directory.is_absolute()
    assert directory.parent == Path("out").absolute()
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    assert (directory / "main/leaderboard.csv").is_file()
    for title in ("Leaderboard", "Protection", "Plots"):
        assert title in result.stdout


def test_quiet_prints_the_directory_only(run_tiny: Command) -> None:
    result = run_tiny("--quiet")
    assert result.exit_code == 0
    assert Path(result.stdout.removesuffix("\n")).is_dir()
    assert result.stderr == ""


def test_runs_of_one_second_have_directories_of_their_own(run_tiny: Command) -> None:
    assert len({run_tiny("--quiet").stdout for _ in range(2)}) == 2


def test_a_file_runs_like_its_name(run_tiny: Command, pudica: Command) -> None:
    first = Path(run_tiny("--quiet").stdout.strip())
    shutil.copy(first / "experiment.yaml", "my.yaml")
    second = pudica("run", "my.yaml", "--engine", "inprocess", "--quiet").stdout.strip()
    assert board(second) == board(first)


def test_a_run_that_is_done_is_not_run_again(run_tiny: Command, pudica: Command) -> None:
    directory = Path(run_tiny("--quiet").stdout.strip())
    before = (directory / "metrics.jsonl").stat().st_mtime_ns
    result = pudica("run", "--resume", directory)
    assert result.exit_code == 0
    assert "is done already" in result.stderr
    assert result.stdout.splitlines()[-1] == str(directory)
    assert (directory / "metrics.jsonl").stat().st_mtime_ns == before


def board(directory: Path | str) -> str:
    return (Path(directory) / "main/leaderboard.csv").read_text()


# ------------------------------------------------------------------------- show and plot


@pytest.mark.usefixtures("figures")
def test_show_and_plot(run_tiny: Command, pudica: Command) -> None:
    runs = [run_tiny("--quiet", seed=str(seed)).stdout.strip() for seed in (0, 1)]
    for columns in (80, 120):
        for shown in (pudica("show", runs[0], COLUMNS=str(columns)), pudica("show", *runs)):
            assert shown.exit_code == 0
            assert "Leaderboard" in shown.stdout
        narrow = pudica("show", *runs, COLUMNS=str(columns)).stdout
        assert max(map(len, narrow.splitlines())) <= columns
        assert "…" not in narrow
    (Path(runs[0]) / "plots/main-accuracy.png").unlink()
    drawn = pudica("plot", runs[0])
    assert drawn.exit_code == 0
    assert all(Path(line).stat().st_size > 0 for line in drawn.stdout.split())
    assert (Path(runs[0]) / "plots/main-accuracy.png").is_file()


# ------------------------------------------------------------------------- stopping


@pytest.fixture(scope="module")
def slow_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of a run with a participant that can be slowed down."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_model.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        participants = "[{model: softmax}, {model: 'custom:slow_model:model', name: Slow}]"
        yield as_options({**TINY, "participants": participants, "themis.epochs": "8"})


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The table of a run that nobody stops, once a test has made it."""
    return {}


@pytest.mark.parametrize(
    ("number", "engine"),
    [
        (signal.SIGINT, "inprocess"),
        (signal.SIGTERM, "inprocess"),
        (signal.SIGKILL, "inprocess"),
        pytest.param(signal.SIGINT, "ray", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_table(
    pudica: Command,
    slow_settings: list[str],
    undisturbed: dict[str, str],
    number: int,
    engine: str,
) -> None:
    run = ("run", "themis-digits", *slow_settings)
    if not undisturbed:
        done = pudica(*run, "--engine", "inprocess", "--quiet").stdout.strip()
        undisturbed["board"] = board(done)

    errors, children = stopped([*run, "--engine", engine, "--out", "stopped"], number)
    (directory,) = Path("stopped").iterdir()
    assert [child for child in children if child.is_running()] == []
    if number != signal.SIGKILL:
        assert f"resume with: pudica run --resume {directory}" in errors
        assert json.loads((directory / "run.json").read_text())["status"] == "interrupted"
        assert "Traceback" not in errors

    resumed = pudica("run", "--resume", directory, "--engine", "inprocess", "--quiet")
    assert resumed.exit_code == 0, resumed.stderr
    assert board(directory) == undisturbed["board"]


def stopped(arguments: list[str], number: int) -> tuple[str, list[psutil.Process]]:
    """Stop a run while its noise generator trains; return what it said, and its children."""
    ours, its = os.pipe()
    with Path(os.devnull).open("w") as nowhere:
        child = fork(partial(run_slowly, arguments), nowhere.fileno(), its, session=True)
    os.close(its)
    try:
        wait_for_generator(child)
        children = psutil.Process(child).children(recursive=True)
        # The terminal sends Ctrl-C to all processes of the group.
        (os.killpg if number == signal.SIGINT else os.kill)(child, number)
        with os.fdopen(ours) as said:
            errors = said.read()
    finally:
        os.kill(child, signal.SIGKILL)
        status = wait_for(child)
    assert status == (-number if number == signal.SIGKILL else 130), errors
    psutil.wait_procs(children, timeout=10)
    return errors, children


def run_slowly(arguments: list[str]) -> None:
    """Call the command line, for Ray in a process that has never used it before."""
    os.environ["SLOW"] = "0.1"
    if "ray" in arguments:
        os.execve(sys.executable, [*PUDICA, *arguments], os.environ)
    sys.argv = ["pudica", *arguments]
    main()


def wait_for_generator(child: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        for file in Path("stopped").glob("*/progress.json"):
            if json.loads(file.read_text())["stage"].startswith("noise generator"):
                return
        time.sleep(0.05)
    raise AssertionError("the noise generator was not reached")
