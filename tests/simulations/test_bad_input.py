"""Bad input: exit code 2, a message that says what, where and what is allowed, nothing left."""

from __future__ import annotations

import errno
import fcntl
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_helpers import as_options
from click.testing import Result
from PIL import Image

from pudica.strategies.core.recorder import Recorder

Command = Callable[..., Result]

SETTINGS = [
    # wrong keys
    (
        "data.nam=mnist",
        "data: unknown key 'nam'. Did you mean 'name'? Allowed: attribute_names, attributes, ",
    ),
    ("themis.epoch=3", "themis: unknown key 'epoch'. Did you mean 'epochs'? Allowed: M, "),
    ("epochs=3", "themis, training. There are training.epochs and themis.epochs"),
    ("them.epochs=3", "unknown key 'them'. Did you mean 'themis'? Allowed: client, data"),
    ("participants=[{mode: mlp}]", "participants.0: unknown key 'mode'. Did you mean 'model'?"),
    ("participants=[{name: x}]", "participants.0: the key 'model' is missing"),
    ("themis.cases={a: {epoch: 3}}", "themis: case 'a': unknown key 'epoch'. Did you mean 'epochs"),
    # wrong names
    ("data.name=minst", "data.name: unknown data set 'minst'. Did you mean 'mnist'? Allowed: att-"),
    ("participants.1.model=mpl", "participants.1: unknown model 'mpl'. Did you mean 'mlp'?"),
    ("themis.examiner.model=resnt-8", "themis.examiner: unknown model 'resnt-8'. Did you mean 're"),
    ("themis.update=jiont", "themis.update = 'jiont': must be 'joint', 'sequential' or 'averaged'"),
    ("themis.order=rand", "themis.order = 'rand': must be 'listed', 'alphabetical', 'reverse' or"),
    ("themis.bystanders=[Nobody]", "themis.bystanders (case 'main'): no participant is called"),
    ("themis.cases={a: {M: 2}}", "case 'a': M is shared by all cases"),
    (
        "system=themsi",
        "unknown system 'themsi'. Did you mean 'themis'? Allowed: dlmt, facemix, split",
    ),
    # wrong types
    ("training.learning_rate=abc", "learning_rate = 'abc': must be a number, above 0 and at most"),
    ("training.epochs=2.5", "training.epochs = 2.5: must be a whole number, at least 1"),
    ("seed=", "seed = (empty): must be a whole number, at least 0"),
    ("client.timeout=true", "--set: client.timeout: must be a number, not true or false"),
    ("training=7", "training = 7: must be a section with keys of: epochs, batch_size"),
    ("themis.cases={a: 3}", "themis.cases.a = 3: must be a section"),
    ("participants=3", "participants = 3: must be a list"),
    ("name=3", "name = 3: must be text"),
    # wrong values
    ("themis.M=0", "--set: themis.M = 0: must be above 0 and at most 1000"),
    ("themis.M=.nan", "themis.M = nan: must be above 0 and at most 1000"),
    ("themis.release.M=[0]", "themis.release.M: every M must be above 0 and at most 1000"),
    ("themis.lambda=-1", "--set: themis.lambda = -1: must be at least 0 and at most 1e+06"),
    ("themis.learning_rate=11", "themis.learning_rate = 11: must be above 0 and at most 10"),
    ("seed=-1", "--set: seed = -1: must be at least 0"),
    ("training.batch_size=0", "training.batch_size = 0: must be at least 1"),
    ("themis.late={MLP: -3}", "themis.late.MLP = -3: must be at least 0"),
    ("themis.cases={a: {epochs: -3}}", "themis: case 'a': epochs = -3: must be at least 0"),
    ("participants=[]", "participants: there are none; name their models"),
    ("themis.dropouts=5", "5 dropouts per epoch, but only 5 participants train the generator; all"),
    ("themis.min_participants=9", "themis.min_participants (case 'main'): 9, but at most 5"),
    # names that become folders
    ("name=../x", "name = '../x': must be a name that can be a folder's"),
    ("themis.cases={../x: {epochs: 1}}", "case '../x': a case's name is that of a folder: at most"),
    ("participants=[{model: mlp, name: a/b}]", "participants.0.name = 'a/b': must be a name with"),
    # what only the data or the machine can tell
    ("participants.0.model=vgg-16", "participants.0 (VGG16): model 'vgg-16' needs images of at le"),
    ("data.partition={scheme: pathological, classes_per_node: 1}", "data.partition: partition 'pa"),
    ("data.name=mnist", "which does not exist. Download it with `--set data.download=true`, set P"),
    # what can't be read
    ("seed", "--set seed: must be key=value, for example seed=3"),
    ("seed=[1", "--set seed=[1: the value is not valid YAML: line 1, column 3: expected ','"),
    ("training.epochs.x=3", "--set training.epochs.x=3: 'epochs' is not a section"),
    ("participants.7.model=mlp", "'7' is no place in a list of 5; allowed: 0 to 4"),
]
FILES = {
    "data: {name: digits\nparticipants: [": "my.yaml: not valid YAML: line 2, column 13: expected",
    "seed: 1\nparticipants: [{model: mlp}]\nseed: 2": "line 3, column 1: the key 'seed' is there",
    "- a": "my.yaml: holds no sections; allowed: name, system",
    "": "my.yaml: holds no sections",
    "seed: x": "my.yaml: seed = 'x': must be a whole number",
    "participants: [{model: mlp}]\nseed: x": "my.yaml: seed = 'x': must be a whole number",
    "participants: [{model: mlp}]\nthemis: {M: 0}": "my.yaml: themis.M = 0: must be above 0",
}


def refused(result: Result, message: str, left: Path | None = Path("results")) -> None:
    """See that a request was refused with a message, and left nothing behind."""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.exit_code == 2
    assert result.stdout == ""
    assert left is None or not left.exists()


@pytest.mark.parametrize(("setting", "message"), SETTINGS, ids=[s for s, _ in SETTINGS])
def test_wrong_setting(pudica: Command, setting: str, message: str) -> None:
    refused(pudica("run", "themis-digits", "--set", setting), message)


def test_every_mistake_is_named(pudica: Command) -> None:
    settings = ("--set", "themis.M=0", "--set", "seed=x", "--set", "data.nam=x")
    result = pudica("run", "themis-digits", *settings)
    for part in ("themis.M = 0", "seed = 'x'", "unknown key 'nam'"):
        assert part in result.stderr


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_wrong_file(pudica: Command, text: str, message: str) -> None:
    Path("my.yaml").write_text(text)
    refused(pudica("run", "my.yaml"), message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "themis-digit",
            "unknown experiment 'themis-digit'. Did you mean 'themis-digits'? Allowed",
        ),
        ("nope.yaml", "there is no experiment file /"),
        ("folder.yaml", "folder.yaml is a directory"),
        ("binary.yaml", "binary.yaml: not valid YAML: 'utf-8' codec"),
    ],
)
def test_no_such_experiment(pudica: Command, name: str, message: str) -> None:
    Path("folder.yaml").mkdir()
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(pudica("run", name), message)


def test_unknown_engine(pudica: Command) -> None:
    result = pudica("run", "themis-digits", "--engine", "rya")
    refused(result, "unknown engine 'rya'. Did you mean 'ray'? Allowed: flower, inprocess, ray")


def test_no_experiment(pudica: Command) -> None:
    refused(pudica("run"), "name an experiment: pudica run NAME (see `pudica list`)")


# ------------------------------------------------------------------------- data and models


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of six images of 12×12 pixels."""
    for label in ("a", "b"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (12, 12), (number, 0, 0)).save(tmp_path / f"own/{label}/{number}.png")
    return tmp_path / "own"


def run_on(pudica: Command, name: str, path: Path, *settings: str) -> Result:
    chosen = {"data.name": name, "data.path": str(path), "participants": "[{model: mlp}]"}
    chosen |= {"themis.examiner": "null"}
    more = [word for setting in settings for word in ("--set", setting)]
    return pudica("run", "themis-digits", *as_options(chosen), *more)


def test_empty_class_folder(pudica: Command, pictures: Path) -> None:
    (pictures / "c").mkdir()
    refused(run_on(pudica, "image-folder", pictures), f"data: empty class folder {pictures}/c")


def test_file_that_is_no_image(pudica: Command, pictures: Path) -> None:
    (pictures / "a/notes.txt").write_text("hello")
    message = f"data: {pictures}/a/notes.txt: not an image file (1 such); allowed: .jpg"
    refused(run_on(pudica, "image-folder", pictures), message)


def test_class_counts_that_differ(pudica: Command, pictures: Path) -> None:
    for part, labels in {"train": "ab", "test": "a"}.items():
        for label in labels:
            target = pictures.parent / "split" / part / label
            target.mkdir(parents=True)
            Image.new("RGB", (12, 12)).save(target / "0.png")
    message = "class folders differ between splits: train has 2, test has 1"
    refused(run_on(pudica, "image-folder", pictures.parent / "split"), message)


def test_labels_out_of_range(pudica: Command, pictures: Path) -> None:
    content = [file.read_bytes() for file in sorted(pictures.rglob("*.png"))]
    images = [{"bytes": data, "path": str(i)} for i, data in enumerate(content)]
    table = pa.table({"image": images, "label": [*range(11), -1]})
    pq.write_table(table, pictures.parent / "own.parquet")
    message = "own.parquet, row 11, column 'label': label -1 out of range; allowed: 0 and more"
    refused(run_on(pudica, "parquet", pictures.parent / "own.parquet"), message)


def test_image_smaller_than_the_model_takes(pudica: Command, pictures: Path) -> None:
    message = "model 'lenet' needs images of at least 16x16 pixels, got 12x12: set data.image_size"
    refused(run_on(pudica, "image-folder", pictures, "participants=[{model: lenet}]"), message)


def test_missing_data_folder(pudica: Command, tmp_path: Path) -> None:
    result = run_on(pudica, "image-folder", tmp_path / "nowhere")
    refused(result, f"data: 'image-folder' was not found in {tmp_path}/nowhere, which does not ex")


def test_exported_program_of_the_wrong_shape(pudica: Command, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10)).eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "rgb.pt2")
    result = pudica("run", "themis-digits", "--set", "participants=[{model: rgb.pt2}]")
    refused(result, "rgb.pt2' takes images of 3x8x8, this experiment needs 1x8x8")


def test_a_cache_that_cannot_be_written(pudica: Command, pictures: Path) -> None:
    result = pudica("run", "themis-digits", PUDICA_CACHE=str(pictures / "a/0.png"))
    refused(result, "Set PUDICA_CACHE to a folder that can be written")


# ------------------------------------------------------------------------- the output


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_output_below_a_file(pudica: Command, out: str) -> None:
    Path("file").write_text("")
    result = pudica("run", "themis-digits", "--out", out)
    refused(result, "file is a file; name a folder in which the run's is created")


def test_output_that_cannot_be_made(pudica: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if "out" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        make(path, *arguments, **options)

    make = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", refuse)
    refused(pudica("run", "themis-digits", "--out", "out"), "Permission denied; choose another --o")


def test_output_without_permission(pudica: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    refused(pudica("run", "themis-digits", "--out", "out"), "--out: no permission to write in /")


def test_output_that_is_a_run(pudica: Command) -> None:
    Path("out").mkdir()
    Path("out/experiment.yaml").write_text("")
    result = pudica("run", "themis-digits", "--out", "out")
    refused(result, "--out: out already holds a run; name a folder for runs, or --resume out")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writing fail where a file would become larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def board(directory: Path | str) -> str:
    return (Path(directory) / "main/leaderboard.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The table of a run that had all the space there is, once a test has made it."""
    return {}


def test_disk_full_at_the_start_leaves_nothing(
    run_tiny: Command, undisturbed: dict[str, str]
) -> None:
    warm(run_tiny, undisturbed)
    with largest_file(0):
        result = run_tiny("--out", "full")
    refused(result, "--out: can't write the run's directory /")
    assert list(Path("full").iterdir()) == []


@pytest.mark.parametrize("size", [1700, 4000, 9000, 20000])
def test_disk_full_in_the_middle_loses_nothing(
    run_tiny: Command, pudica: Command, undisturbed: dict[str, str], size: int
) -> None:
    warm(run_tiny, undisturbed)
    with largest_file(size):
        result = run_tiny("--out", "full")
    (directory,) = Path("full").iterdir()
    assert result.exit_code == 2
    assert f"error: --out: can't write in {directory}: File too large" in result.stderr
    assert f"pudica run --resume {directory}" in result.stderr

    resumed = pudica("run", "--resume", directory, "--engine", "inprocess", "--quiet")
    assert resumed.exit_code == 0
    assert board(directory) == undisturbed["board"]


def warm(run_tiny: Command, undisturbed: dict[str, str]) -> None:
    """Run once with all the space there is, so that nothing is left to import or decode."""
    if not undisturbed:
        undisturbed["board"] = board(run_tiny("--quiet", "--out", "warm").stdout.strip())


# ------------------------------------------------------------------------- resuming


@pytest.fixture
def stopped(run_tiny: Command) -> Path:
    """A run that was interrupted, as far as its record says."""
    directory = Path(run_tiny("--quiet").stdout.strip())
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    return directory


@pytest.mark.parametrize("place", ["nowhere", "folder", "file"])
def test_resuming_what_is_no_run(pudica: Command, place: str) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    refused(pudica("run", "--resume", place), f"--resume: {place} holds no run (there is no experi")


def test_resuming_with_other_settings(pudica: Command, stopped: Path) -> None:
    resume = ("--resume", stopped)
    other = "is a run of another experiment or of other settings; leave out the name and --set"
    refused(pudica("run", "themis-digits", "--set", "seed=5", *resume), other, None)
    refused(pudica("run", "themis-mnist", *resume), other, None)
    refused(pudica("run", "--set", "seed=5", *resume), "with the settings it has, without --", None)


def test_resuming_a_damaged_record(pudica: Command, stopped: Path) -> None:
    (stopped / "run.json").write_text("{")
    refused(pudica("run", "--resume", stopped), "run.json is damaged; delete it, and resume", None)


def test_resuming_what_another_process_runs(pudica: Command, stopped: Path) -> None:
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); "
    hold += "print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(stopped / ".lock")]
    resume = ("run", "--resume", stopped, "--engine", "inprocess", "--quiet")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        refused(pudica(*resume), "is being run by another process", None)
        other.kill()
    assert pudica(*resume).exit_code == 0


def test_a_run_is_locked_while_it_runs(run_tiny: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    seen = []

    def compete(cohort, experiment: object) -> None:
        command = [sys.executable, "-c", probe, str(cohort.recorder.directory / ".lock")]
        seen.append(subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr)
        raise RuntimeError("enough")

    monkeypatch.setattr("pudica.strategies.themis.competition.compete", compete)
    assert run_tiny().exit_code == 1
    assert "BlockingIOError" in seen[0]
    with open(next(Path("results").glob("*/.lock")), "a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------------- nodes


BROKEN = """
import os, torch

class Broken(torch.nn.Linear):
    def forward(self, x):
        if self.training and "WELL" not in os.environ:
            raise RuntimeError("no luck")
        return super().forward(x.flatten(1))

def model(num_classes, channels, image_size):
    return Broken(channels * image_size**2, num_classes)
"""


@pytest.fixture
def broken_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that fails in training, unless the environment says WELL."""
    (tmp_path / "broken_model.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "{model: 'custom:broken_model:model', name: Broken}"


def test_a_node_that_fails_is_a_dropout(run_tiny: Command, broken_model: str) -> None:
    result = run_tiny(participants=f"[{{model: softmax}}, {broken_model}]")
    directory = Path(result.stdout.splitlines()[-1])
    assert result.exit_code == 0
    assert "1 dropouts: results/" in result.stderr
    assert "dropout: Broken: RuntimeError: no luck" in (directory / "events.log").read_text()
    assert "Broken" not in board(directory)


def test_a_run_without_nodes_fails(run_tiny: Command, broken_model: str) -> None:
    result = run_tiny(participants=f"[{broken_model}]")
    (directory,) = Path("results").iterdir()
    assert result.exit_code == 1
    assert "error: the run failed: TooFewParticipants: " in result.stderr
    assert "Broken: RuntimeError: no luck" in result.stderr
    assert f"resume with: pudica run --resume {directory}" in result.stderr
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"


def test_a_node_that_comes_back_takes_part_again(
    run_tiny: Command, pudica: Command, broken_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(recorder: Recorder, task: str, **result: object) -> None:
        finish(recorder, task, **result)
        if task == "generator/main":
            raise KeyboardInterrupt

    finish = Recorder.finish
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finish", interrupt)
        assert run_tiny(participants=f"[{{model: softmax}}, {broken_model}]").exit_code == 130
    (directory,) = Path("results").iterdir()
    resume = ("run", "--resume", directory, "--engine", "inprocess")
    result = pudica(*resume, WELL="1")
    assert result.exit_code == 0
    assert "Broken" in board(directory)


# ------------------------------------------------------------------------- cuts and audits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cuts", "vgg-smal"), "'vgg-small'"),
        (("cuts", "lenet", "--input", "3x64"), "'3x64' is not an image"),
        (("cuts", "lenet", "--post", "nowhere"), "unknown cut 'nowhere'"),
        (("cuts", "resnet-8", "--post", "0.0"), "no stage could end before '0.0'"),
        (("cuts", "resnet-8", "--post", "input"), "no stage could end before 'input'"),
        (("cuts", "lenet", "--input", "3x8x8"), "at least 16x16"),
        (("cuts", "lenet", "--weights", "1,0,1"), "three numbers above 0"),
        (("cuts", "lenet", "--weights", "1,1"), "three numbers above 0"),
        (("cuts", "lenet", "--input", "03x32x32"), "is not an image"),
        (("audit", "clip-gausian"), "Did you mean 'clip-gaussian'"),
        (("audit", "clip-gaussian", "--set", "epsilon=-1"), "epsilon = -1: must be above 0"),
        (
            ("audit", "clip-gaussian", "--set", "epsilon=1", "--set", "delta=1"),
            "delta = 1: must be",
        ),
        (("audit", "clip-gaussian"), "the key 'epsilon' is missing"),
        (("audit", "clip-gaussian", "--set", "epsilon=true"), "must be a number"),
        (("audit", "clip-gaussian", "--set", "epsilon=.inf"), "must be a finite number"),
        (("audit", "clip-gaussian", "--set", "epsilon"), "must be key=value"),
        (("audit", "none"), "has no noise with a guarantee"),
        (("audit", "clip-laplace", "--set", "epsilon=1", "--shape", "4x"), "'4x' is not a shape"),
        (
            ("audit", "batch-norm-laplace", "--set", "epsilon=1", "--batch", "1"),
            "at least 2 examples",
        ),
    ],
)
def test_wrong_cuts_and_audits(pudica: Command, arguments: tuple[str, ...], message: str) -> None:
    refused(pudica(*arguments), message)


# ------------------------------------------------------------------------- show and plot


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("command", ["show", "plot"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "nothing found at nowhere"),
        ("folder", "folder is no run, and holds none: it lacks run.json"),
        ("file", "file is a file; name the run's directory"),
    ],
)
def test_showing_what_is_no_run(pudica: Command, command: str, place: str, message: str) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    refused(pudica(command, place), message)
