"""Nodes on Ray actors: each node, with its model and data, stays on the same actor."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    build_error_reply,
    build_expiry_reply,
    copy_records,
    expiry_time,
)
from pudica.simulations.engines.workers import (
    DEATHS,
    Share,
    Workers,
    describe_free_resources,
)
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import append_event

ATTEMPTS = 3
PATIENCE_SECONDS = 30.0
# For how long a dead worker's nodes wait for another before they move to the workers that are left,
# and if none is left, for how long the run waits.
REPLACE_SECONDS = 20.0
RESOURCE_SECONDS = 300.0
# After which workers that have not started, though others have, count as dead.
START_SECONDS = 120.0
# One object in Ray's store is no larger, as long as replies are no larger than requests.
BATCH_BYTES = 2**28


@dataclass
class _PendingMessage:
    identifier: str
    message: Message
    worker: int
    attempts: int
    expired: bool = False


@dataclass
class _Vacancy:
    """The place of a dead worker, and what its nodes are to be sent once they have another.

    ``suspicious``: one of the messages may have killed it.
    """

    share: Share
    deadline: float
    messages: list[_PendingMessage]
    suspicious: bool


class NoWorkersLeft(RuntimeError):
    """All workers are gone, and Ray has no room for another."""


class RayGrid(LocalGrid):
    """A grid that passes messages directly to Ray actors.

    An actor that dies is replaced: its nodes keep the ``context.state`` they had, and the messages
    that they had not answered are sent again. A node drops out after its actor has died three
    times on the same message. If Ray has no room for another actor, as when a machine of a cluster
    is gone, the nodes move to the actors that are left. If none is left, the grid waits some
    minutes for room and then raises NoWorkersLeft.

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
    observe : callable, optional
        Called with a line on what becomes of lost workers, which is logged in any case.

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
        observe: Callable[[str], None] | None = None,
    ) -> None:
        options = options or NodeOptions()
        super().__init__(partitions, options.run_id)
        self._batched = batched
        self._outbox: list[_PendingMessage] = []
        arguments = (_pickle_app(app), partitions, config, options, search_path)
        self.workers = Workers(arguments, num_cpus, num_gpus)
        for worker in range(min(workers, partitions)):
            self.workers.start(worker)
        self._observe = observe
        self._vacancies: dict[int, _Vacancy] = {}  # by the number of a worker that is dead
        self._next_check = time.monotonic() + START_SECONDS
        self._resource_deadline: float | None = None
        self._pending: dict[Any, list[_PendingMessage]] = {}  # by Ray's reference to the replies
        self._replies: dict[str, Message] = {}
        self._worker_of_node: dict[int, int] = {}
        self._states: dict[int, RecordDict] = {}
        self._copies: dict[int, RecordDict] = {}  # by id, of what a push sends to several nodes

    def await_workers(self) -> None:
        """Wait until all workers have loaded the ClientApp.

        Raises
        ------
        RequestError
            If one can't.
        """
        started = self.workers.started
        while ray.wait(started, num_returns=len(started), timeout=PATIENCE_SECONDS)[1]:
            log(WARN, "still waiting for workers; %s", describe_free_resources())
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
        for worker in list(self.workers):
            self.workers.remove(worker)
        for vacancy in self._vacancies.values():
            vacancy.share.release()

    def _push(self, messages: Iterable[Message], together: bool = False) -> list[str]:
        with self._lock:
            identifiers = super()._push(messages)
            self._copies.clear()
            outbox, self._outbox = self._outbox, []
            for batch in self._split(outbox, together or self._batched):
                self._submit(batch)
        return identifiers

    def _dispatch(self, message: Message, identifier: str) -> None:
        node = message.metadata.dst_node_id
        if node not in self._worker_of_node:
            self._worker_of_node[node] = self._choose_worker()
        # What is sent again after a death must be what was sent; shared records stay shared.
        key = id(message.content)
        if key not in self._copies:
            self._copies[key] = copy_records(message.content)
        message.content = self._copies[key]
        self._outbox.append(_PendingMessage(identifier, message, self._worker_of_node[node], 1))

    def _choose_worker(self) -> int:
        """Return the worker with the fewest nodes; a dead one only if all are."""
        load = Counter(self._worker_of_node.values())
        return min(self.workers or self._vacancies, key=lambda worker: load[worker])

    def _submit(self, requests: list[_PendingMessage]) -> None:
        """Send messages that are all for the same worker; keep them if it is dead."""
        if vacancy := self._vacancies.get(requests[0].worker):
            vacancy.messages += requests
            return
        arguments = [(p.message, self.partition[p.message.metadata.dst_node_id]) for p in requests]
        self._pending[self.workers[requests[0].worker].answer.remote(arguments)] = requests

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait briefly for replies, and return those of the requested ones that are available."""
        wanted = list(message_ids)
        with self._lock:
            if not any(i in self._replies for i in wanted):
                self._collect()
            return [self._replies.pop(i) for i in wanted if i in self._replies]

    def _collect(self) -> None:
        """Wait briefly for replies; take those that have come, and see to dead workers."""
        self._take_replies()
        if time.monotonic() > self._next_check:
            self._check_starts()
        if self._vacancies:
            self._fill_vacancies()
        self._answer_expired()

    def _take_replies(self) -> None:
        if not (references := list(self._pending)):
            if self._vacancies:
                time.sleep(PULL_SECONDS)
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=PULL_SECONDS)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            if reference not in self._pending:
                continue  # of a worker that is dead, and whose messages are taken back
            try:
                answers = ray.get(reference)
            except DEATHS as error:
                self._vacate(self._pending[reference][0].worker, error)
                continue
            for pending, (reply, state) in zip(self._pending.pop(reference), answers, strict=True):
                if state is not None:
                    self._states[pending.message.metadata.dst_node_id] = state
                if not pending.expired:
                    self._replies[pending.identifier] = reply

    def _answer_expired(self) -> None:
        """Answer messages whose time to live is over; their nodes may still be at work."""
        now, kept = time.time(), (vacancy.messages for vacancy in self._vacancies.values())
        unanswered = itertools.chain(self._pending.values(), kept)
        for pending in itertools.chain.from_iterable(unanswered):
            if not pending.expired and expiry_time(pending.message) < now:
                pending.expired = True
                self._replies[pending.identifier] = build_expiry_reply(pending.message)

    # ---------------------------------------------------------------------- dead workers

    def _vacate(self, worker: int, error: Exception | None = None) -> None:
        """Take back what a dead worker has not answered; ``error``: it died at work."""
        suspicious = error is not None and worker not in self.workers.find_lost()
        self.workers.remove(worker)
        calls = [r for r, requests in self._pending.items() if requests[0].worker == worker]
        unanswered = [pending for call in calls for pending in self._pending.pop(call)]
        if error and suspicious and unanswered:
            # A worker answers in order: alone, a message that comes first has killed it. Of several
            # in one call any may have; sent again one by one, it shows.
            unanswered[0].attempts += 1
            if unanswered[0].attempts > ATTEMPTS:
                self._give_up(unanswered.pop(0), error)
        deadline = time.monotonic() + REPLACE_SECONDS
        share = self.workers.new_share()
        self._vacancies[worker] = _Vacancy(share, deadline, unanswered, suspicious)

    def _give_up(self, pending: _PendingMessage, error: Exception) -> None:
        if not pending.expired:
            death = RuntimeError(f"its worker died {ATTEMPTS} times: {error}")
            self._replies[pending.identifier] = build_error_reply(pending.message, death)

    def _check_starts(self) -> None:
        """Take workers for dead that wait for room while others have some, or had some once."""
        self._next_check = time.monotonic() + PATIENCE_SECONDS
        late = self.workers.find_late()
        none_started = len(late) == len(self.workers)
        if late and none_started:
            log(WARN, "still waiting for workers; %s", describe_free_resources())
        for worker in late:
            if not none_started or self.workers.has_share(worker):
                self._vacate(worker)

    def _fill_vacancies(self) -> None:
        """Replace dead workers as far as there is room; after a while, move the others' nodes."""
        for worker in [w for w, v in self._vacancies.items() if v.share.is_reserved()]:
            self._replace(worker)
        now = time.monotonic()
        overdue = [worker for worker, v in self._vacancies.items() if v.deadline < now]
        if not overdue:
            return
        for worker in self.workers.find_lost():  # also those that were idle
            self._vacate(worker)
        if self.workers:
            self._move_nodes(overdue)
        else:
            self._await_resources()

    def _replace(self, worker: int) -> None:
        """Start another worker in a dead one's place, and send what it has not answered."""
        vacancy = self._vacancies.pop(worker)
        self._resource_deadline = None
        self.workers.start(worker, vacancy.share)
        self._restore_states([n for n, of in self._worker_of_node.items() if of == worker])
        self._send_again(vacancy)

    def _move_nodes(self, dead: Sequence[int]) -> None:
        """Let the nodes of dead workers go on with those that are left."""
        vacancies = [self._vacancies.pop(worker) for worker in dead]
        nodes = [n for n, worker in self._worker_of_node.items() if worker in dead]
        for node in nodes:
            self._worker_of_node[node] = self._choose_worker()
        self._report(
            f"{len(dead)} of {len(dead) + len(self.workers)} Ray workers are gone, and there is no "
            f"room for new ones ({describe_free_resources()}): their nodes ({len(nodes)}) move to "
            f"the workers that are left ({len(self.workers)})"
        )
        self._restore_states(nodes)
        for vacancy in vacancies:
            vacancy.share.release()
            self._send_again(vacancy)

    def _await_resources(self) -> None:
        """Say what a run without workers waits for; NoWorkersLeft once it has waited for long."""
        if self._resource_deadline is None:
            self._resource_deadline = time.monotonic() + RESOURCE_SECONDS
            self._report(
                f"all Ray workers are gone; waiting up to {RESOURCE_SECONDS:g} s for room for "
                f"one ({self.workers.describe_needs()}); {describe_free_resources()}"
            )
        elif time.monotonic() > self._resource_deadline:
            raise NoWorkersLeft(
                f"all Ray workers are gone, and for {RESOURCE_SECONDS:g} s there was no room for "
                f"one ({self.workers.describe_needs()}); {describe_free_resources()}; when there "
                "is more, start or resume the run"
            )

    def _restore_states(self, nodes: Iterable[int]) -> None:
        """Give nodes the states that they had on dead workers."""
        states: defaultdict[int, dict[int, tuple[int, RecordDict]]] = defaultdict(dict)
        for node in nodes:
            if node in self._states:
                state = self.partition[node], self._states[node]
                states[self._worker_of_node[node]][node] = state
        for worker, of_worker in states.items():
            self.workers[worker].restore.remote(of_worker)

    def _send_again(self, vacancy: _Vacancy) -> None:
        for pending in vacancy.messages:
            pending.worker = self._worker_of_node[pending.message.metadata.dst_node_id]
        for batch in self._split(vacancy.messages, self._batched and not vacancy.suspicious):
            self._submit(batch)

    def _split(
        self, messages: Sequence[_PendingMessage], together: bool
    ) -> Iterable[list[_PendingMessage]]:
        return split_batches(messages) if together else ([pending] for pending in messages)

    def _report(self, text: str) -> None:
        log(WARN, "%s", text)
        if self._observe:
            self._observe(text)


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
            observe=partial(append_event, directory),
        )
        server_app(grid, build_server_context(config))
