"""A cluster that loses machines: their nodes move to the workers that are left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fragile_app
import pytest
import ray
from flwr.app import ConfigRecord, Message, RecordDict
from ray.cluster_utils import Cluster

from pudica.simulations.engines import cluster as connecting
from pudica.simulations.engines import inprocess
from pudica.simulations.engines import ray as engine
from pudica.simulations.engines.local import build_server_context
from pudica.simulations.engines.ray import NoWorkersLeft, RayGrid
from pudica.simulations.programs.calling import LOOPBACK, make_private_folder, write_ray_token
from pudica.strategies.core.experiment import RayConfig
from pudica.strategies.loading import load_experiment

pytestmark = pytest.mark.slow

TINY = [
    "data.limit=160",
    "training.epochs=2",
    "themis.epochs=2",
    "themis.release.draws=2",
    "themis.examiner={model: softmax, training: {epochs: 1}}",
]
REPLY_SECONDS = 50.0


class Machines:
    """A cluster on this machine, which no other Ray finds, of machines with one CPU each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": LOOPBACK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)

    def lose(self, name: str, process: int) -> None:
        """Kill a machine, and the worker that is on it, whatever it is at."""
        machine = next(m for m in self.cluster.worker_nodes if m.node_id == name)
        self.cluster.remove_node(machine, allow_graceful=False)
        os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        self.cluster.shutdown()


def find(worker: Any) -> tuple[str, int]:
    """Return the name of a worker's machine, and the worker's process."""
    found: tuple[str, int] = ray.get([worker.machine.remote(), worker.process_id.remote()])
    return found


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """A cluster of two machines with a CPU each, joined by this process."""
    monkeypatch.setattr(engine, "REPLACE_SECONDS", 1.0)
    folder = make_private_folder()
    token = write_ray_token(folder)
    # Where Ray says which cluster it has started, for others to find.
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(connecting._set_authentication({**token, "RAY_AUTH_TOKEN": None}))
        stack.enter_context(connecting._use_loopback())
        machines = Machines()
        stack.callback(machines.close)
        for _ in range(2):
            machines.add()
        yield machines


@pytest.fixture
def said() -> list[str]:
    """What the grid says of lost workers."""
    return []


@pytest.fixture
def grid(two_machines: Machines, said: list[str]) -> Iterator[RayGrid]:
    """Four nodes on two workers, one a machine, which have answered twice."""
    here = (str(Path(__file__).parent),)
    with connecting.connect(RayConfig(address=two_machines.cluster.address)):
        build_server_context({})
        made = RayGrid(fragile_app.app, 4, {}, 2, search_path=here, observe=said.append)
        assert ask(made) == {0: 1, 1: 1, 2: 1, 3: 1}
        assert ask(made) == {0: 2, 1: 2, 2: 2, 3: 2}
        yield made
        made.stop()


def messages(grid: RayGrid, deeds: Mapping[str, str]) -> list[Message]:
    content = RecordDict({"config": ConfigRecord(dict(deeds))})
    return [Message(content, node, "query") for node in grid.get_node_ids()]


def counts(replies: list[Message]) -> dict[int, int | str]:
    """Return how many messages nodes have answered, or with which error."""
    return {
        reply.metadata.src_node_id - 2: str(reply.error.reason)
        if reply.has_error()
        else int(reply.content.metric_records["m"]["count"])
        for reply in replies
    }


def ask(grid: RayGrid, deeds: Mapping[str, str] | None = None) -> dict[int, int | str]:
    replies = grid.send_and_receive(messages(grid, deeds or {}), timeout=REPLY_SECONDS)
    return counts(list(replies))


def pull(grid: RayGrid, identifiers: list[str]) -> list[Message]:
    replies: list[Message] = []
    deadline = time.monotonic() + REPLY_SECONDS
    while len(replies) < len(identifiers) and time.monotonic() < deadline:
        replies += grid.pull_messages(identifiers)
    return replies


def test_nodes_of_a_lost_machine_move_with_their_states_and_messages(
    two_machines: Machines, grid: RayGrid, said: list[str]
) -> None:
    first = find(grid.workers[0])
    asked = list(grid.push_messages(messages(grid, dict.fromkeys("0123", "nap"))))
    two_machines.lose(*first)
    assert counts(pull(grid, asked)) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert list(grid.workers) == [1]
    assert len(said) == 1
    assert "1 of 2 Ray workers are gone" in said[0]
    assert ask(grid) == {0: 4, 1: 4, 2: 4, 3: 4}
    # A message that kills its worker is given up, also where others have moved to.
    replies = ask(grid, {"0": "die"})
    assert "died 3 times" in str(replies.pop(0))
    assert replies == {1: 5, 2: 5, 3: 5}
    assert ask(grid) == {0: 5, 1: 6, 2: 6, 3: 6}


def list_without_workers(said: list[str]) -> list[str]:
    """Return what was said of no worker being left; the second may be missed later than the first.

    Then the first one's nodes have moved to the second before.
    """
    return [text for text in said if text.startswith("all Ray workers are gone")]


def test_without_any_machine_the_grid_says_what_it_waits_for(
    two_machines: Machines, grid: RayGrid, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RESOURCE_SECONDS", 2.0)
    for worker in map(find, list(grid.workers.values())):
        two_machines.lose(*worker)
    start = time.monotonic()
    with pytest.raises(NoWorkersLeft, match=r"Ray has .* CPUs free; .* resume the run"):
        ask(grid)
    assert time.monotonic() - start < REPLY_SECONDS
    (last,) = list_without_workers(said)
    assert "waiting up to 2 s" in last


def test_a_machine_that_comes_takes_all_nodes_if_none_was_left(
    two_machines: Machines, grid: RayGrid, said: list[str]
) -> None:
    both = [find(worker) for worker in grid.workers.values()]
    asked = list(grid.push_messages(messages(grid, dict.fromkeys("0123", "nap"))))
    for worker in both:
        two_machines.lose(*worker)
    deadline = time.monotonic() + REPLY_SECONDS
    while not list_without_workers(said) and time.monotonic() < deadline:
        assert list(grid.pull_messages(asked)) == []
    assert len(list_without_workers(said)) == 1
    two_machines.add()
    assert counts(pull(grid, asked)) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert len(grid.workers) == 1


@pytest.fixture
def lose_a_machine_midway(
    two_machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], list[RayGrid]]:
    """Let a run lose the first worker's machine when messages are pulled, after some pulls."""
    pull_messages = RayGrid.pull_messages

    def lose(at: int) -> list[RayGrid]:
        grids: list[RayGrid] = []
        pulls = iter(range(1_000_000))

        def deadly(grid: RayGrid, identifiers: Any) -> Any:
            if next(pulls) == at:
                two_machines.lose(*find(grid.workers[0]))
                grids.append(grid)
            return pull_messages(grid, identifiers)

        monkeypatch.setattr(RayGrid, "pull_messages", deadly)
        return grids

    return lose


@pytest.mark.parametrize(
    ("name", "settings", "at"),
    [
        ("themis-digits", TINY, 12),
        ("split-digits", ["data.limit=600", "split.epochs=3", "split.front=private"], 22),
    ],
)
def test_a_run_that_loses_a_machine_ends_with_the_same_table(
    two_machines: Machines,
    lose_a_machine_midway: Callable[[int], list[RayGrid]],
    tmp_path: Path,
    name: str,
    settings: list[str],
    at: int,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    inprocess.run(load_experiment(name, settings), here)
    address = f"ray.address={two_machines.cluster.address}"
    lost = lose_a_machine_midway(at)
    engine.run(load_experiment(name, [*settings, address]), there)
    assert [list(grid.workers) for grid in lost] == [[1]]
    rows = [
        sorted(row for row in lines if '"stage": "costs"' not in row)
        for lines in ((run / "metrics.jsonl").read_text().splitlines() for run in (here, there))
    ]
    assert rows[0] == rows[1]
    assert (there / "events.log").read_text().count("Ray workers are gone") == 1
