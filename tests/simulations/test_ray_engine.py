"""Our Ray grid: the same numbers as in process, and workers that may die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fragile_app
import psutil
import pytest
import ray
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors
from pudica.simulations.engines import inprocess
from pudica.simulations.engines.cluster import compute_worker_count, connect
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.simulations.engines.ray import RayGrid, _PendingMessage, split_batches
from pudica.strategies.app import app as server_app
from pudica.strategies.core.experiment import Experiment, RayConfig
from pudica.strategies.loading import load_experiment

TINY = [
    "data.limit=160",
    "training.epochs=2",
    "themis.epochs=2",
    "themis.release.draws=2",
    "themis.examiner={model: softmax, training: {epochs: 1}}",
]
SPLIT = [
    "data.limit=96",
    "split.model=cnn-tiny",
    "split.epochs=2",
    "split.optimizer={learning_rate: 0.1, momentum: 0.9}",
    "split.shield.epsilon=50",
]
SHARE = 0.25


def experiment(*overrides: str) -> Experiment:
    return load_experiment("themis-digits", [*TINY, *overrides])


def rows_of(directory: Path) -> list[str]:
    return sorted((directory / "metrics.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local Ray for this module."""
    with connect(RayConfig()):
        yield


def run_on_ray(wanted: Experiment, directory: Path, workers: int, **options: Any) -> RayGrid:
    config = build_run_config(wanted, directory, "ray")
    count = len(wanted.names())
    grid = RayGrid(client_app, count, config, workers, num_cpus=0.5, **options)
    try:
        server_app(grid, build_server_context(config))
    finally:
        grid.stop()
    return grid


def test_messages_travel_in_batches_that_fit_the_object_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one worker each, in the order in which they were sent, none of them lost."""
    monkeypatch.setattr("pudica.simulations.engines.ray.BATCH_BYTES", 100)

    def outbox(size: int) -> list[_PendingMessage]:
        content = RecordDict({"x": ConfigRecord({"": "x" * size})})
        return [_PendingMessage(str(i), Message(content, i, "query"), i % 2, 1) for i in range(10)]

    def batches(size: int) -> list[list[str]]:
        return sorted([p.identifier for p in batch] for batch in split_batches(outbox(size)))

    build_server_context({})
    assert batches(20) == [list("02468"), list("13579")]
    assert batches(40) == [list("02"), list("13"), list("46"), list("57"), ["8"], ["9"]]
    assert batches(300) == [[str(i)] for i in range(10)]


@pytest.mark.slow
def test_the_same_bits_in_process_and_on_a_worker(cluster: None, tmp_path: Path) -> None:
    wanted = experiment()
    inprocess.run(wanted, tmp_path / "here")
    run_on_ray(wanted, tmp_path / "there", workers=1)
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")


def run_with_deaths(wanted: Experiment, directory: Path, at: tuple[int, ...]) -> None:
    """Run on two workers, of which the first is killed when messages are pulled."""
    config = build_run_config(wanted, directory, "ray")
    grid = RayGrid(client_app, len(wanted.names()), config, workers=2, num_cpus=0.5)
    pull, pulls = grid.pull_messages, iter(range(10_000))

    def deadly(message_ids: Any) -> Any:
        if next(pulls) in at:
            with suppress(ray.exceptions.RayActorError):  # it has died by itself
                os.kill(ray.get(grid.workers[0].process_id.remote()), signal.SIGKILL)
        return pull(message_ids)

    grid.pull_messages = deadly  # type: ignore[method-assign]
    server_app(grid, build_server_context(config))
    grid.stop()
    assert next(pulls) > max(at)


@pytest.mark.slow
def test_of_two_workers_one_that_dies_changes_nothing(cluster: None, tmp_path: Path) -> None:
    wanted = experiment()
    inprocess.run(wanted, tmp_path / "here")
    run_with_deaths(wanted, tmp_path / "there", at=(3, 40))
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")


# ------------------------------------------------------------------------ split learning


def split_experiment(*overrides: str) -> Experiment:
    return load_experiment("split-digits", [*SPLIT, *overrides])


@pytest.mark.slow
def test_split_learning_on_workers_is_that_in_process(cluster: None, tmp_path: Path) -> None:
    """In directories of the same name, which is a part of each message."""
    wanted = split_experiment(
        "split.cases={average: {}, handoff: {front: handoff}, private: {front: private}}"
    )
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    inprocess.run(wanted, here)
    run_on_ray(wanted, there, workers=2)
    assert rows_of(there) == rows_of(here)
    assert (here / "releases.json").read_text() == (there / "releases.json").read_text()
    for case in ("average", "handoff", "private"):
        one, other = (load_tensors(run / case / "model.safetensors") for run in (here, there))
        assert one[0].keys() == other[0].keys()
        assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])


@pytest.mark.slow
def test_owners_of_disguised_images_on_workers_do_what_they_do_in_process(
    cluster: None, tmp_path: Path
) -> None:
    wanted = load_experiment("dlmt-digits", ["dlmt.training.epochs=2", "data.limit=120"])
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    inprocess.run(wanted, here)
    run_on_ray(wanted, there, workers=2)
    assert rows_of(there) == rows_of(here)
    assert (here / "releases.json").read_text() == (there / "releases.json").read_text()


@pytest.mark.slow
def test_private_fronts_survive_a_worker_that_dies(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on from what the vaults have: from all, if it was written in each turn."""
    monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", 0.0)
    wanted = split_experiment("split.front=private")
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    inprocess.run(wanted, here)
    config = build_run_config(wanted, there, "ray")
    grid = RayGrid(client_app, len(wanted.names()), config, workers=1, num_cpus=0.5)
    push, smashed = grid.push_messages, []

    def deadly(messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        if {message.metadata.message_type for message in asked} == {protocol.SMASH}:
            smashed.append(len(asked))
            if len(smashed) == 3:
                os.kill(ray.get(grid.workers[0].process_id.remote()), signal.SIGKILL)
        return push(asked)

    grid.push_messages = deadly  # type: ignore[method-assign]
    server_app(grid, build_server_context(config))
    grid.stop()
    assert len(smashed) > 3
    assert rows_of(there) == rows_of(here)


@pytest.fixture(scope="module")
def grid(cluster: None) -> Iterator[RayGrid]:
    """Four nodes on two workers, which import `fragile_app` by name."""
    build_server_context({})
    here = (str(Path(__file__).parent),)
    app = fragile_app.app
    made = RayGrid(app, 4, {}, workers=2, num_cpus=SHARE, batched=False, search_path=here)
    yield made
    made.stop()


def ask(grid: RayGrid, deeds: dict[str, str], timeout: float | None = None) -> dict[int, Message]:
    content = RecordDict({"config": ConfigRecord(dict(deeds))})
    messages = [Message(content, node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=timeout)
    return {reply.metadata.src_node_id - 2: reply for reply in replies}


def test_a_node_stays_on_its_worker(grid: RayGrid) -> None:
    rounds = [ask(grid, {}) for _ in range(3)]
    processes = [
        {node: m.content.metric_records["m"]["process"] for node, m in replies.items()}
        for replies in rounds
    ]
    assert processes[0] == processes[1] == processes[2]
    assert len(set(processes[0].values())) == 2


def test_a_node_that_raises_answers_with_the_error(grid: RayGrid) -> None:
    replies = ask(grid, {"1": "fail"})
    assert replies[1].has_error()
    assert "ValueError: on purpose" in (replies[1].error.reason or "")
    assert not any(replies[node].has_error() for node in (0, 2, 3))


def test_a_node_that_kills_its_worker_is_given_up_and_its_neighbours_answer(
    grid: RayGrid,
) -> None:
    replies = ask(grid, {"0": "die"})
    assert "died 3 times" in (replies[0].error.reason or "")
    assert not any(replies[node].has_error() for node in (1, 2, 3))
    assert not any(reply.has_error() for reply in ask(grid, {}).values())


def test_a_slow_node_is_not_waited_for_beyond_the_timeout(grid: RayGrid) -> None:
    ask(grid, {})  # the workers are up
    start = time.monotonic()
    replies = ask(grid, {"3": "sleep"}, timeout=2.0)
    assert time.monotonic() - start < 10
    assert {0, 1, 2} <= set(replies)
    assert 3 not in replies


def test_nodes_of_a_worker_for_which_there_is_no_room_move(
    grid: RayGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("START_SECONDS", "PATIENCE_SECONDS", "REPLACE_SECONDS"):
        monkeypatch.setattr(f"pudica.simulations.engines.ray.{name}", 0.5)
    build_server_context({})
    said: list[str] = []
    # Beside the other grid's workers there is room for one of these.
    share = 0.75 * (ray.cluster_resources()["CPU"] - len(grid.workers) * SHARE)
    here = (str(Path(__file__).parent),)
    large = RayGrid(fragile_app.app, 4, {}, 2, share, search_path=here, observe=said.append)
    try:
        replies = ask(large, {}, timeout=60)
        assert len(replies) == 4
        assert not any(reply.has_error() for reply in replies.values())
        assert len(large.workers) == 1
        assert ["1 of 2 Ray workers are gone" in text for text in said] == [True]
    finally:
        large.stop()


def test_shares_that_do_not_fit_are_refused_with_what_there_is(cluster: None) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert compute_worker_count(None, 1.0, 0.0, 100) == cpus
    assert compute_worker_count(None, 0.5, 0.0, 3) == min(3, 2 * cpus)
    with pytest.raises(RequestError, match=f"Ray has {cpus} CPUs"):
        compute_worker_count(cpus + 1, 1.0, 0.0, 100)
    if "GPU" not in ray.cluster_resources():
        with pytest.raises(RequestError, match="0 GPUs"):
            compute_worker_count(None, 1.0, 0.25, 2)


@pytest.mark.slow
def test_the_engine_leaves_no_process_behind(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from pudica.simulations.engines import ray;"
        "from pudica.strategies.themis.experiment import ThemisExperiment;"
        "ray.run(ThemisExperiment.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    wanted = experiment(
        "participants=[{model: softmax}]", "themis.epochs=0", "themis.release.compare=false"
    )
    run = tmp_path / "run"
    marker = {**os.environ, "PUDICA_TEST_MARK": str(tmp_path)}
    arguments = [wanted.model_dump_json(by_alias=True), str(run)]
    subprocess.run([sys.executable, "-c", script, *arguments], env=marker, check=True, timeout=200)
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    for _ in range(50):
        left = [process for process in psutil.process_iter() if _marked(process, str(tmp_path))]
        if not left:
            break
        time.sleep(0.2)
    assert left == []


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("PUDICA_TEST_MARK") == mark
    except psutil.Error:
        return False
