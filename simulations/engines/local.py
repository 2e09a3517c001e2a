"""Shared by our own engines: a Flower grid without a SuperLink, and the ServerApp's context."""

from __future__ import annotations

import itertools
import threading
import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from pudica.simulations.engines.nodes import RUN_ID, copy_object

if TYPE_CHECKING:
    from pudica.strategies.core.experiment import Experiment

SERVER = 1
PULL_SECONDS = 0.05
# Flower's strategies wait this long unless they are told otherwise: for as long as it takes.
LONG_SECONDS = 3600.0


def build_run_config(experiment: Experiment, directory: Path, engine: str) -> dict[str, str]:
    """Return the run configuration of server and clients on our own engines."""
    return {
        "experiment": experiment.model_dump_json(by_alias=True),
        "set": "",
        "out": str(directory),
        "vault": str(directory / "vault"),
        "engine": engine,
    }


def build_server_context(
    config: Mapping[str, bool | float | int | str], run_id: int = RUN_ID
) -> Context:
    """Return the ServerApp's context and set Flower's identity of this process.

    ``Message(content, dst, type)`` takes run and node from Flower's process-wide identity, which
    only Flower's own processes set.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER, 0
    return Context(run_id, SERVER, {}, RecordDict(), dict(config))


@contextmanager
def restore_identity() -> Iterator[None]:
    """Give this process back, afterwards, the identity in Flower that it has now, or none."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


class LocalGrid(Grid):
    """A grid whose nodes live on this machine or on a Ray cluster, each with a partition.

    Attributes
    ----------
    is_complete : bool
        Nobody need wait for more nodes.
    """

    is_complete = True

    def __init__(self, partitions: int, run_id: int = RUN_ID) -> None:
        self._run = Run.create_empty(run_id)
        self._numbers = itertools.count(1)
        # ServerApps with a `server_fn` use a grid from several threads.
        self._lock = threading.RLock()
        self.partition = {node: node - 2 for node in range(2, 2 + partitions)}

    def set_run(self, run: Run) -> None:
        """Set the run; part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run; only its id is set."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids."""
        return list(self.partition)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their nodes and return their ids; ValueError without such a node."""
        return self._push(messages)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and pull until all replies have arrived or ``timeout`` has passed.

        The replies are in the order of the messages, so that sums over them do not depend on
        which node was faster.
        """
        identifiers = self._push(messages, together=timeout is None or timeout >= LONG_SECONDS)
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: dict[str, Message] = {}
        waiting = dict.fromkeys(identifiers)
        while waiting and time.monotonic() < deadline:
            for reply in self._receive(waiting.keys()):
                identifier = reply.metadata.reply_to_message_id
                replies[identifier] = reply
                del waiting[identifier]
        return [replies[i] for i in identifiers if i in replies]

    def _push(self, messages: Iterable[Message], together: bool = False) -> list[str]:  # noqa: ARG002
        """Send messages, ``together`` if nobody reads a reply before all are there; return ids."""
        prepared = [self._prepare(message) for message in messages]
        with self._lock:
            for message in prepared:
                self._dispatch(message, message.metadata.message_id)
        return [message.metadata.message_id for message in prepared]

    def _prepare(self, message: Message) -> Message:
        """Return a message as a node gets it, with an id that in Flower only a SuperLink assigns.

        The original gets the same id, as in Flower.
        """
        node = message.metadata.dst_node_id
        if node not in self.partition:
            first, last = min(self.partition), max(self.partition)
            raise ValueError(
                f"there is no node {node}; this simulation has nodes {first} to {last}"
            )
        identifier = str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = identifier
        sent = copy_object(message)
        sent.__dict__["_metadata"] = copy_object(message.metadata)
        return sent

    def _receive(self, identifiers: Collection[str]) -> Iterable[Message]:
        """Return some replies, after a short time at most if nodes work in the background."""
        return self.pull_messages(identifiers)

    @abstractmethod
    def _dispatch(self, message: Message, identifier: str) -> None:
        """Deliver one message to its node."""
