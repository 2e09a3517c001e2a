"""The simulated nodes of one process, also of a Ray actor, and how they answer messages."""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from logging import ERROR
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from pudica.clients.runtime.lifetime import Memory, remember_in

# This imports little, since every worker process pays for it when it starts. PyTorch is imported
# where it is used: many apps do without.

Answer = tuple[Message, RecordDict | None]

RUN_ID = 1
T = TypeVar("T")


@dataclass(frozen=True)
class NodeOptions:
    """What all nodes of a simulation have in common.

    Attributes
    ----------
    seed : int or None
        Seeds the global random generators anew for every message, so that a node's answer does
        not depend on where it is computed. None: they are left alone.
    threads : int or None
        PyTorch threads of a ClientApp; None: as many as its process has.
    log_errors : bool
        Whether to log the traceback of what a ClientApp raises.
    """

    run_id: int = RUN_ID
    seed: int | None = None
    threads: int | None = None
    log_errors: bool = False


class SimulatedNodes:
    """Nodes that run the same ClientApp, one message after the other.

    As in Flower's simulation, ``context.state`` is what the last successful handler left: what a
    handler that raised has changed is thrown away.

    Parameters
    ----------
    partitions : int
        Number of nodes in the whole simulation.
    config : mapping
        The run configuration.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        config: Mapping[str, bool | float | int | str],
        options: NodeOptions | None = None,
    ) -> None:
        self._memory = Memory()
        self._app = app
        self._partitions = partitions
        self._config = config
        self._options = options or NodeOptions()
        self.contexts: dict[int, Context] = {}  # of the nodes met so far, by node id

    def add(self, node: int, partition: int) -> Context:
        """Return the context of a node, which is made the first time."""
        if node not in self.contexts:
            place: UserConfig = {"partition-id": partition, "num-partitions": self._partitions}
            self.contexts[node] = Context(
                self._options.run_id, node, place, RecordDict(), dict(self._config)
            )
        return self.contexts[node]

    def answer(self, message: Message, partition: int) -> Message:
        """Return a node's reply, or an error message if its ClientApp raised."""
        expires = expiry_time(message)
        if expires < time.time():
            return build_expiry_reply(message)
        node = self.add(message.metadata.dst_node_id, partition)
        context = _copy_context(node)
        try:
            with remember_in(self._memory), self._set_up(message):
                reply = self._app(message, context)
            _check_reply(reply, message)
        except Exception as error:
            if self._options.log_errors:
                log(ERROR, "node %s: %s", partition, traceback.format_exc())
            return build_error_reply(message, error)
        # A copy, since a reply may hold records of the state, and the server may change them.
        if context.state or node.state:
            node.state = copy_records(context.state)
        return build_expiry_reply(message) if expires < time.time() else reply

    def _set_up(self, message: Message) -> AbstractContextManager[object]:
        seed, threads = self._options.seed, self._options.threads
        if seed is None and threads is None:
            return nullcontext()
        stack = ExitStack()
        if threads is not None and "torch" in sys.modules:
            from pudica.models.compute import Compute, ComputeConfig

            stack.enter_context(Compute(ComputeConfig(threads=threads)).use_threads())
        if seed is not None:
            from pudica.models.randomness import derive

            stack.enter_context(use_global_seed(derive(seed, message.metadata.message_id)))
        return stack


class Worker:
    """Ray actor that runs the pickled ClientApp for the nodes assigned to it.

    It looks for modules in the search path first.
    """

    def __init__(
        self,
        app: bytes,
        partitions: int,
        config: Mapping[str, bool | float | int | str],
        options: NodeOptions,
        search_path: Sequence[str] = (),
    ) -> None:
        from ray import cloudpickle

        sys.path[:] = [*search_path, *(path for path in sys.path if path not in search_path)]
        self._nodes = SimulatedNodes(cloudpickle.loads(app), partitions, config, options)

    def restore(self, states: Mapping[int, tuple[int, RecordDict]]) -> None:
        """Take over nodes of a worker that died: by node id, the partition and the state."""
        for node, (partition, state) in states.items():
            self._nodes.add(node, partition).state = state

    def answer(self, requests: list[tuple[Message, int]]) -> list[Answer]:
        """Return each node's reply, and its state if that has changed.

        A request is a message, and the partition of the node that it is addressed to.
        """
        return [self._answer(message, partition) for message, partition in requests]

    def _answer(self, message: Message, partition: int) -> Answer:
        # Those of one call share the records that the strategy gave to several nodes.
        message.content = copy_records(message.content)
        node = self._nodes.add(message.metadata.dst_node_id, partition)
        before = node.state
        reply = self._nodes.answer(message, partition)
        return reply, None if node.state == before else node.state

    def process_id(self) -> int:
        """Return the actor's process id."""
        return os.getpid()

    def machine(self) -> str:
        """Return the id that Ray has given to the machine that this is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


@contextmanager
def use_global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch within the context only."""
    from pudica.models.randomness import temporary_seed

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with temporary_seed(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def copy_object(original: T) -> T:
    """Return a shallow copy of an object of Flower's; its constructor takes ten times as long."""
    copied = object.__new__(type(original))
    copied.__dict__.update(original.__dict__)
    return copied


def copy_records(records: RecordDict) -> RecordDict:
    """Return a copy whose records can be changed; arrays, which are immutable, are shared."""
    # Flower's records keep what they hold, checked already, under "_data".
    copied = copy_object(records)
    held = copied.__dict__["_data"] = records.__dict__["_data"].copy()
    for name, record in held.items():
        held[name] = copy = copy_object(record)
        values = copy.__dict__["_data"] = record.__dict__["_data"].copy()
        if type(record) is not ArrayRecord:
            for key, value in values.items():
                if type(value) is list:
                    values[key] = value.copy()
    return copied


def _copy_context(context: Context) -> Context:
    copied = copy_object(context)
    copied.node_config, copied.run_config = dict(context.node_config), dict(context.run_config)
    copied.state = copy_records(context.state)
    return copied


def _check_reply(reply: Message, message: Message) -> None:
    """Raise if a ClientApp returned something else than a reply to this message."""
    if not isinstance(reply, Message):
        raise TypeError(
            f"the ClientApp returned {type(reply).__name__}; it must return a Message: "
            "Message(content, reply_to=message)"
        )
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError(
            "the ClientApp returned a Message that does not reply to the one it was given; make "
            "it with Message(content, reply_to=message)"
        )


def build_error_reply(message: Message, error: BaseException) -> Message:
    """Return the message that Flower sends when a ClientApp raises.

    Raises
    ------
    OSError
        If the disk is full. In a simulation all nodes share it, so this must stop the run instead
        of making a node drop out.
    """
    if isinstance(error, OSError):
        from pudica.models.files import DISK_FULL

        if error.errno in DISK_FULL:
            raise error
    reason = f"{type(error).__name__}: {error}"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def expiry_time(message: Message) -> float:
    """Return when a message's time to live is over, and with it that of its reply."""
    metadata = message.metadata
    return metadata.created_at + metadata.ttl


def build_expiry_reply(message: Message) -> Message:
    """Return the message that Flower sends in place of a reply that comes too late."""
    reason = f"the message has expired: its time to live was {message.metadata.ttl:g} s"
    return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=message)
