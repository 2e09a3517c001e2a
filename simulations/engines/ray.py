"""Nodes on Ray actors: each node, with its model and data, stays on the same actor."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import WARN
from pathlib import Path
from typing import Any

import ray
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from ray import cloudpickle

from pudica.clients.protocol import payload_bytes
from pudica.models.errors import RequestError
from pudica.simulations.engines.cluster import compute_worker_count, connect
from pudica.simulations.engines.local import (
    PULL_SECONDS,
    LocalGrid,
    build_run_config,
    build_server_context,
)
from pudica.simulations.engines.nodes import (
    NodeOptions,
    Worker,
    build_error_reply,
    build_expiry_reply,
    copy_records,
    expiry_time,
)
from pudica.strategies.core.experiment import Experiment

ATTEMPTS = 3
PATIENCE_SECONDS = 30.0
# One object in Ray's store is no larger, as long as replies are no larger than requests.
BATCH_BYTES = 2**28


@dataclass
class _PendingMessage:
    identifier: str
    message: Message
    worker: int
    attempts: int
    expired: bool = False


class RayGrid(LocalGrid):
    """A grid that passes messages directly to Ray actors.

    An actor that dies is replaced: its nodes keep the ``context.state`` they had, and the messages
    that they had not answered are sent again. A node drops out after its actor has died three
    times on the same message.

    Parameters
    ----------
    app : ClientApp
        What it refers to by name must be importable on the workers.
    config : mapping
        The run configuration.
    num_cpus, num_gpus : float
        Resources of each worker.
    batched : bool
        Pass the messages of a push to a worker in a single call. This is several times faster,
        but the replies arrive together too, so runs with a timeout need False.
        :meth:`send_and_receive` does so anyway unless it has a short timeout.
    search_path : sequence of str
        Where workers look for modules first.

    Raises
    ------
    RequestError
        If the app can't be pickled.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        config: Mapping[str, bool | float | int | str],
        workers: int,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        batched: bool = True,
        options: NodeOptions | None = None,
        search_path: Sequence[str] = (),
    ) -> None:
        options = options or NodeOptions()
        super().__init__(partitions, options.run_id)
        self._batched = batched
        self._outbox: list[_PendingMessage] = []
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
        self._arguments = (_pickle_app(app), partitions, config, options, search_path)
        self.workers: list[Any] = [self._new_worker() for _ in range(min(workers, partitions))]
        self._pending: dict[Any, list[_PendingMessage]] = {}  # by Ray's reference to the replies
        self._replies: dict[str, Message] = {}
        self._worker_of_node: dict[int, int] = {}
        self._states: dict[int, RecordDict] = {}
        self._copies: dict[int, RecordDict] = {}  # by id, of what a push sends to several nodes

    def _new_worker(self) -> Any:
        return self._actor.remote(*self._arguments)

    def await_workers(self) -> None:
        """Wait until all workers have loaded the ClientApp.

        Raises
        ------
        RequestError
            If one can't.
        """
        started = [worker.process_id.remote() for worker in self.workers]
        while ray.wait(started, num_returns=len(started), timeout=PATIENCE_SECONDS)[1]:
            free, total = ray.available_resources(), ray.cluster_resources()
            cpus = (free.get("CPU", 0), total.get("CPU", 0))
            log(WARN, "still waiting for workers; Ray has %g of %g CPUs free", *cpus)
        try:
            ray.get(started)
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RequestError(
                f"engine: a Ray worker can't load the ClientApp: {reason}; workers must be able "
                "to import its modules; engine 'inprocess' works without"
            ) from error

    def stop(self) -> None:
        """Stop the workers."""
        for worker in self.workers:
            ray.kill(worker)

    def _push(self, messages: Iterable[Message], together: bool = False) -> list[str]:
        with self._lock:
            identifiers = super()._push(messages)
            self._copies.clear()
            outbox, self._outbox = self._outbox, []
            together = together or self._batched
            for batch in split_batches(outbox) if together else ([pending] for pending in outbox):
                self._submit(batch)
        return identifiers

    def _dispatch(self, message: Message, identifier: str) -> None:
        node = message.metadata.dst_node_id
        if node not in self._worker_of_node:  # goes to the worker with the fewest nodes
            load = Counter(self._worker_of_node.values())
            workers = range(len(self.workers))
            self._worker_of_node[node] = min(workers, key=lambda worker: load[worker])
        # What is sent again after a death must be what was sent; shared records stay shared.
        key = id(message.content)
        if key not in self._copies:
            self._copies[key] = copy_records(message.content)
        message.content = self._copies[key]
        self._outbox.append(_PendingMessage(identifier, message, self._worker_of_node[node], 1))

    def _submit(self, requests: list[_PendingMessage]) -> None:
        """Send messages that are all for the same worker."""
        arguments = [(p.message, self.partition[p.message.metadata.dst_node_id]) for p in requests]
        self._pending[self.workers[requests[0].worker].answer.remote(arguments)] = requests

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait briefly for replies, and return those of the requested ones that are available."""
        wanted = list(message_ids)
        with self._lock:
            if self._pending and not any(i in self._replies for i in wanted):
                self._collect()
            return [self._replies.pop(i) for i in wanted if i in self._replies]

    def _collect(self) -> None:
        references = list(self._pending)
        ready, _ = ray.wait(references, num_returns=1, timeout=PULL_SECONDS)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            if reference not in self._pending:
                continue  # sent again already, with the others of a dead worker
            try:
                answers = ray.get(reference)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                self._replace_worker(self._pending[reference][0].worker, error)
                continue
            for pending, (reply, state) in zip(self._pending.pop(reference), answers, strict=True):
                if state is not None:
                    self._states[pending.message.metadata.dst_node_id] = state
                if not pending.expired:
                    self._replies[pending.identifier] = reply
        # Answer messages whose time to live is over; their nodes may still be at work.
        now = time.time()
        for pending in itertools.chain.from_iterable(self._pending.values()):
            if not pending.expired and expiry_time(pending.message) < now:
                pending.expired = True
                self._replies[pending.identifier] = build_expiry_reply(pending.message)

    def _replace_worker(self, worker: int, error: Exception) -> None:
        """Replace a dead worker, and send its unanswered messages again, one by one."""
        calls = [r for r, requests in self._pending.items() if requests[0].worker == worker]
        lost = [pending for call in calls for pending in self._pending.pop(call)]
        self.workers[worker] = self._new_worker()
        states = {
            node: (self.partition[node], state)
            for node, state in self._states.items()
            if self._worker_of_node[node] == worker
        }
        if states:
            self.workers[worker].restore.remote(states)
        for position, pending in enumerate(lost):
            # A worker answers in order: alone, a message that comes first has killed it. Of several
            # in one call any may have; sent again one by one, it shows.
            pending.attempts += position == 0
            if pending.attempts <= ATTEMPTS:
                self._submit([pending])
            elif not pending.expired:
                death = RuntimeError(f"its worker died {ATTEMPTS} times: {error}")
                self._replies[pending.identifier] = build_error_reply(pending.message, death)


def split_batches(outbox: Iterable[_PendingMessage]) -> Iterator[list[_PendingMessage]]:
    """Yield the messages of each worker in batches.

    A batch travels as one object, in which what several nodes get is there once; its replies
    too, which differ, and are taken to be as large as what the nodes got.
    """
    sizes: dict[int, int] = {}
    batches: dict[int, list[_PendingMessage]] = {}
    filled: Counter[int] = Counter()
    for pending in outbox:
        content, worker = pending.message.content, pending.worker
        if id(content) not in sizes:
            sizes[id(content)] = payload_bytes(content)
        size = sizes[id(content)]
        if worker in batches and filled[worker] + size > BATCH_BYTES:
            yield batches.pop(worker)
            filled[worker] = 0
        batches.setdefault(worker, []).append(pending)
        filled[worker] += size
    yield from batches.values()


def _pickle_app(app: ClientApp) -> bytes:
    try:
        return bytes(cloudpickle.dumps(app))
    except Exception as error:
        raise RequestError(
            f"engine: the ClientApp can't be sent to Ray workers: {type(error).__name__}: {error}; "
            "create what can't be pickled inside its functions, or use engine 'inprocess'"
        ) from error


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment with its nodes on Ray actors."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = build_run_config(experiment, directory, "ray")
    partitions, client = len(experiment.names()), experiment.client
    with connect(experiment.ray):
        workers = compute_worker_count(
            experiment.ray.workers, client.num_cpus, client.num_gpus, partitions
        )
        grid = RayGrid(
            client_app,
            partitions,
            config,
            workers,
            client.num_cpus,
            client.num_gpus,
            batched=client.timeout is None,
        )
        server_app(grid, build_server_context(config))
