"""Shared by our own engines: a Flower grid without a SuperLink, and the contexts of its apps."""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.app.user_config import UserConfig
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from pudica.models.files import DISK_FULL

if TYPE_CHECKING:
    from pudica.strategies.core.experiment import Experiment

RUN_ID = 1
SERVER = 1
PULL_SECONDS = 0.05


def build_run_config(experiment: Experiment, directory: Path, engine: str) -> dict[str, str]:
    """Return the run configuration of server and clients on our own engines."""
    return {
        "experiment": experiment.model_dump_json(by_alias=True),
        "set": "",
        "out": str(directory),
        "vault": str(directory / "vault"),
        "engine": engine,
    }


def build_client_context(
    node: int, partition: int, partitions: int, config: dict[str, str]
) -> Context:
    """Return the context of one simulated node."""
    place: UserConfig = {"partition-id": partition, "num-partitions": partitions}
    return Context(RUN_ID, node, place, RecordDict(), dict(config))


def build_server_context(config: dict[str, str]) -> Context:
    """Return the ServerApp's context and set Flower's identity of this process.

    ``Message(content, dst, type)`` takes run and node from Flower's process-wide identity, which
    only Flower's own processes set.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER, 0
    return Context(RUN_ID, SERVER, {}, RecordDict(), dict(config))


def build_error_reply(message: Message, error: BaseException) -> Message:
    """Return the message that Flower sends when a ClientApp raises.

    Raises
    ------
    OSError
        If the disk is full. In a simulation all nodes share it, so this must stop the run instead
        of making a node drop out.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        raise error
    reason = f"{type(error).__name__}: {error}"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class LocalGrid(Grid):
    """A grid whose nodes live on this machine or on a Ray cluster.

    Parameters
    ----------
    partitions : int
        Number of nodes; node ``i`` holds partition ``i``.
    """

    def __init__(self, partitions: int) -> None:
        self._run = Run.create_empty(RUN_ID)
        self._numbers = itertools.count(1)
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
        """Send messages to their nodes and return the message ids."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            identifiers.append(identifier)
            self._dispatch(_with_id(message, identifier), identifier)
        return identifiers

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and pull until all replies have arrived or ``timeout`` has passed."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            arrived = list(self.pull_messages(list(waiting)))
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            replies += arrived
        return replies

    @abstractmethod
    def _dispatch(self, message: Message, identifier: str) -> None:
        """Deliver one message to its node."""


def _with_id(message: Message, identifier: str) -> Message:
    """Return the message with an id, which in Flower only a SuperLink assigns."""
    old = message.metadata
    metadata = Metadata(
        run_id=old.run_id,
        message_id=identifier,
        src_node_id=old.src_node_id,
        dst_node_id=old.dst_node_id,
        reply_to_message_id="",
        group_id=old.group_id,
        created_at=old.created_at,
        ttl=old.ttl,
        message_type=old.message_type,
    )
    return Message(content=message.content, metadata=metadata)  # type: ignore[call-overload,no-any-return]
