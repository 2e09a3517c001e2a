"""TensorBoard, MLflow and Weights & Biases have what metrics.jsonl has, whatever happens."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from competition_helpers import ListeningGrid, rows_of, tiny
from forking import fork, wait_for
from killed_runs import killed_at, run
from logged_runs import (
    Points,
    only_mlflow_run,
    read_mlflow,
    read_tensorboard,
    read_wandb,
    wandb_records,
)

from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.simulations.runner import prepare
from pudica.strategies.core import delivery
from pudica.strategies.core.delivery import settings_to_share
from pudica.strategies.core.joining import base_assignments
from pudica.strategies.core.loggers import MlflowLogger, Row, TensorBoardLogger, WandbLogger
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment

READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}
SECONDS = 60.0


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for runs: MLflow takes seconds to begin a database."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return Weights & Biases, whose settings of this process are read anew."""
    library = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")
    library.teardown()
    yield library
    library.teardown()


@pytest.fixture(params=list(READERS))
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return each logger's name, where its library is installed."""
    if request.param == "wandb":
        request.getfixturevalue("wandb")
    if request.param == "mlflow":
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(request.param)


def recorder(directory: Path, log: str, *overrides: str, engine: str = "test") -> Recorder:
    return Recorder(directory, tiny(f"log={log}", *overrides), engine)


def wait_until_given(directory: Path, log: str, rows: int) -> None:
    """Wait until a logger has so many rows."""
    state, until = directory / "loggers.json", time.monotonic() + SECONDS
    while not (state.exists() and json.loads(state.read_text()).get(log, {}).get("rows") == rows):
        assert time.monotonic() < until, "the logger does not get on"
        time.sleep(0.01)


def events(directory: Path) -> str:
    file = directory / "events.log"
    return file.read_text() if file.exists() else ""


def expected(directory: Path) -> Points:
    """Return what TensorBoard should show: measurements in single precision."""
    rows = [json.loads(line) for line in rows_of(directory)]
    logger = object.__new__(TensorBoardLogger)
    logger._curves = {}
    return {(logger.curve(r), r["round"]): [float(np.float32(r["value"]))] for r in rows}


# ------------------------------------------------------------------------- what is asked for


def test_one_name_or_several(tmp_path: Path) -> None:
    assert tiny().log == ()
    assert tiny("log=mlflow").log == ("mlflow",)
    assert tiny("log=[wandb, tensorboard, wandb]").log == ("wandb", "tensorboard")


@pytest.mark.parametrize("value", ["tensorbord", "[tensorboard, tensorbord]"])
def test_an_unknown_name_is_refused_with_those_there_are(value: str) -> None:
    with pytest.raises(RequestError, match=r"log.*'tensorboard', 'mlflow' or 'wandb'"):
        tiny(f"log={value}")


@pytest.mark.parametrize("value", ["3", "true", "null", "{a: b}"])
def test_what_is_no_name_is_refused(value: str) -> None:
    with pytest.raises(RequestError, match=r"log.* must be a list"):
        tiny(f"log={value}")


@pytest.mark.parametrize("logger", [TensorBoardLogger, MlflowLogger, WandbLogger])
def test_without_the_library_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: Any
) -> None:
    monkeypatch.setitem(sys.modules, logger.module, None)
    wanted = rf"log: {logger.extra} .*pip install 'pudica\[{logger.extra}\]'"
    with pytest.raises(RequestError, match=wanted):
        prepare("themis-digits", [f"log={logger.extra}"], tmp_path, None, "inprocess")
    with pytest.raises(RequestError, match=wanted):
        recorder(tmp_path / "run", logger.extra)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_called_wandb_is_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as the library itself leaves it in a working directory
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(RequestError, match="wandb is not installed here"):
        WandbLogger.check()
    del sys.modules["wandb"]


def test_nobody_is_asked_for_a_key_in_the_middle_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Any
) -> None:
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    with pytest.raises(RequestError, match=r"wandb has no API key; .*WANDB_MODE=offline"):
        recorder(tmp_path / "run", "wandb")


# ---------------------------------------------------------------------------- what they get


def test_tensorboard_has_every_measurement_of_a_competition(
    tmp_path: Path, compete: Callable[..., ListeningGrid]
) -> None:
    compete("log=tensorboard")
    assert read_tensorboard(tmp_path / "run") == expected(tmp_path / "run")
    compete(name="without")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "without")


def test_each_has_curves_over_the_rounds_and_the_settings(results: Path, name: str) -> None:
    directory = results / f"curves-{name}"
    first = recorder(directory, name)
    for number in range(3):
        first.log("local", "loss", 1 / (number + 1), node="CNN-tiny", round=number, case="a")
    first.log("evaluation", "accuracy", 0.5, node="MLP", release="trained", draw=1)
    first.close("done")
    assert events(directory) == ""
    if name == "wandb":
        loss, accuracy = "a/local/loss/CNN_tiny", "evaluation/accuracy/MLP/draw_1/release_trained"
    else:
        loss, accuracy = "a/local/loss/CNN-tiny", "evaluation/accuracy/MLP/draw-1/release-trained"
    wanted = {(loss, n): [pytest.approx(1 / (n + 1))] for n in range(3)} | {(accuracy, 0): [0.5]}
    assert READERS[name](directory) == wanted


def test_what_is_not_finite_does_no_harm(results: Path, name: str) -> None:
    directory = results / f"not-finite-{name}"
    first = recorder(directory, name)
    for number, value in enumerate((math.nan, math.inf, -math.inf, 1.0)):
        first.log("local", "loss", value, round=number)
    first.close("done")
    assert events(directory) == ""
    values = [v for _, (v,) in sorted(READERS[name](directory).items())]
    assert math.isnan(values[0])
    assert values[1] >= sys.float_info.max  # MLflow keeps infinity as the largest number
    assert values[2] <= -sys.float_info.max
    assert values[3] == 1.0


def test_two_names_never_share_a_curve(results: Path, name: str) -> None:
    directory = results / f"names-{name}"
    nodes = ["A B", "A_B", "A.B", "A-B", "..", "ä", "名", "x" * 300, "x" * 301, "a/b", "a\\b", "%"]
    first = recorder(directory, name)
    for number, node in enumerate(nodes):
        first.log("local", "loss", number, node=node, round=1)
    first.finish("some")
    first.close("interrupted")
    again = recorder(directory, name)
    for number, node in enumerate(reversed(nodes)):
        again.log("local", "loss", number, node=node, round=2)
    again.close("done")
    assert events(directory) == ""
    points = READERS[name](directory)
    assert sorted(points.values()) == sorted([float(n)] for n in range(len(nodes)) for _ in "ab")
    before = {curve: value for (curve, step), (value,) in points.items() if step == 1}
    after = {curve: value for (curve, step), (value,) in points.items() if step == 2}
    assert after == {curve: len(nodes) - 1 - value for curve, value in before.items()}


def test_mlflow_knows_experiment_settings_and_how_it_ended(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for status, theirs in (("done", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")):
        directory = results / f"mlflow-{status}"
        recorder(directory, "mlflow", f"description={'long ' * 3000}").close(status)
        known = only_mlflow_run(directory)
        assert known.info.status == theirs
        assert known.data.params["themis.epochs"] == "2"
        assert known.data.params["participants.2.model"] == "cnn-tiny"
        assert known.info.artifact_uri.startswith((results / "mlruns").as_uri())


def test_where_mlflow_is_its_own_variable_says(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{results / 'mlflow.db'}")
    recorder(tmp_path / "elsewhere", "mlflow", "name=other").close("done")
    assert not (tmp_path / "mlflow.db").exists()
    assert only_mlflow_run(results / "elsewhere").info.status == "FINISHED"


@pytest.mark.slow
def test_runs_that_begin_together_find_one_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def begin(directory: Path) -> None:
        first = recorder(directory, "mlflow")
        first.log("local", "loss", 1.0)
        first.close("done")

    runs = [tmp_path / f"run-{number}" for number in range(4)]
    children = [fork(partial(begin, directory)) for directory in runs]
    assert [wait_for(child) for child in children] == [0] * len(runs)
    for directory in runs:
        assert events(directory) == ""
        assert read_mlflow(directory) == {("local/loss/organiser", 0): [1.0]}


# ------------------------------------------------------------------------------ privacy


@pytest.mark.parametrize("engine", ["inprocess", "deployment"])
def test_where_secrets_lie_is_told_to_none(results: Path, name: str, engine: str) -> None:
    directory = results / f"secrets-{name}-{engine}"
    token = f"token-{name}-{engine}"
    secret = ["ray.address=auto", f"ray.token={results / token}", "seed=987654321"]
    recorder(directory, name, *secret, engine=engine).close("done")
    places = [directory / "tensorboard", directory / "wandb", results / "mlflow.db"]
    files = [f for p in places for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    texts = [file.read_bytes() for file in files]
    assert any(b"cnn-tiny" in text for text in texts)
    assert not any(token.encode() in text for text in texts)
    if engine == "deployment":
        shown = settings_to_share(tiny(*secret).to_yaml(), deployed=True)
        assert "987654321" not in str(shown)
        own = [text for text, file in zip(texts, files, strict=True) if file.name != "mlflow.db"]
        assert not any(b"987654321" in text for text in own)


def test_a_key_is_left_out_and_how_keys_are_chosen_is_not(tmp_path: Path) -> None:
    for key in ("a.key", "b.key"):
        (tmp_path / key).touch()
    cases = f"dlmt.cases={{a: {{key: {tmp_path / 'a.key'}}}, b: {{key: per-owner}}}}"
    disguised = ["data.shield=MAT(64)", f"data.key={tmp_path / 'b.key'}"]
    for experiment in (
        load_experiment("dlmt-digits", [cases, "seed=5"]),
        load_experiment("split-digits", [*disguised, "seed=5"]),
    ):
        assert str(tmp_path) in experiment.to_yaml()
        shown = settings_to_share(experiment.to_yaml(), deployed=False)
        assert str(tmp_path) not in str(shown)
        assert shown["seed"] == 5
        if experiment.system == "dlmt":
            assert shown["dlmt"]["key"] == "shared"
            assert shown["dlmt"]["cases"] == {"a": {}, "b": {"key": "per-owner"}}


def test_weights_and_biases_gathers_nothing_by_itself(results: Path, wandb: Any) -> None:
    directory = results / "gathers"
    first = recorder(directory, "wandb")
    print("said in the terminal")
    first.log("local", "loss", 1.0)
    first.close("done")
    kinds = {record.WhichOneof("record_type") for record in wandb_records(directory)}
    assert "history" in kinds
    assert not kinds & {"output", "output_raw", "stats", "environment", "artifact"}
    assert not [f for f in (directory / "wandb").glob("*/files/**/*") if f.is_file()]


def test_nodes_hear_nothing_of_it(tmp_path: Path, compete: Callable[..., ListeningGrid]) -> None:
    told = [base_assignments(tiny(f"log={log}"), "run", False) for log in ("[]", "tensorboard")]
    assert told[0] == told[1]
    grid = compete("log=tensorboard")
    assert grid.requests
    assert not any("tensorboard" in str(message.content) for message in grid.requests)


# ------------------------------------------------------------------------------- resuming


def test_a_resumed_run_is_one_run_without_a_point_twice(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "run"

    def killed() -> None:
        first = recorder(directory, name)
        for number in (1, 2):
            first.log("local", "loss", float(number), round=number)
        first.finish("one")
        for number in (3, 4, 5):  # to be measured again, and to come to something else
            first.log("local", "loss", -1.0, round=number)
        # Where a kill takes rows from the library, too, it does not count as having them.
        wait_until_given(directory, name, 0 if name == "wandb" else 2)
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(fork(killed)) == -signal.SIGKILL
    known = json.loads((directory / "loggers.json").read_text())[name]["id"]
    again = recorder(directory, name)
    for number in (3, 4):
        again.log("local", "loss", float(number), round=number)
    again.close("done")
    assert events(directory) == ""
    assert json.loads((directory / "loggers.json").read_text())[name] == {"id": known, "rows": 4}
    points = READERS[name](directory)
    assert {step: values for (_, step), values in points.items()} == {n: [n] for n in range(1, 5)}


def test_killed_anywhere_tensorboard_has_what_was_measured_in_the_end(tmp_path: Path) -> None:
    directory, log = tmp_path / "run", "log=tensorboard"
    for what, number in [
        (protocol.LOCAL, 2),
        ("checkpoint", 3),
        (protocol.PREDICT, 4),
        (protocol.GRADIENT, 5),
        (protocol.VISIT, 3),
    ]:
        assert killed_at(what, number, directory, log), f"it did not come to {what} {number}"
    assert wait_for(fork(lambda: run(directory, log))) == 0
    assert read_tensorboard(directory) == expected(directory)


def test_a_run_that_an_older_version_began_is_resumed(tmp_path: Path) -> None:
    recorder(tmp_path / "run", "[]").close("interrupted")
    file = tmp_path / "run" / "experiment.yaml"
    text = file.read_text()
    assert "log: []\n" in text
    file.write_text(text.replace("log: []\n", ""))
    recorder(tmp_path / "run", "[]").close("done")


# ------------------------------------------------------------------------------- failures


def test_a_logger_that_fails_is_off_and_made_up_for_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TensorBoardLogger, rows: Sequence[Row], first: int) -> None:
        if rows:
            raise OSError("no space left\non this disk")

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardLogger, "log", fail)
        first = recorder(tmp_path / "run", "tensorboard")
        for number in range(5):
            first.log("local", "loss", float(number), round=number)
            first.finish(str(number))
        first.close("interrupted")
    said = events(tmp_path / "run")
    assert said.count("tensorboard is switched off: OSError: no space left") == 1
    assert said.count("\n") == 1
    assert len(rows_of(tmp_path / "run")) == 5
    again = recorder(tmp_path / "run", "tensorboard")
    again.log("local", "loss", 5.0, round=5)
    again.close("done")
    assert read_tensorboard(tmp_path / "run") == expected(tmp_path / "run")


def test_a_logger_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compete: Callable[..., ListeningGrid]
) -> None:
    server_answers = threading.Event()
    monkeypatch.setattr(delivery, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(TensorBoardLogger, "log", lambda *_: server_answers.wait(SECONDS))
    compete("log=tensorboard")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"
    assert "tensorboard was not done 0.1 s after the run" in events(tmp_path / "run")
    server_answers.set()
