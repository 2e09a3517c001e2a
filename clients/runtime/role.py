"""A node's side of a system, and how a Flower ClientApp hands messages to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import WARN
from typing import Any, ClassVar, Self

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from pudica.clients import protocol
from pudica.clients.data.errors import DataError
from pudica.clients.runtime.idempotency import answer_once, exchange_of
from pudica.clients.runtime.lifetime import Memory, current_memory
from pudica.clients.runtime.vault import AnyVault, is_deployed, own_vault
from pudica.models.compute import Compute
from pudica.models.files import DISK_FULL

Config = dict[str, Any]
Arrays = dict[str, torch.Tensor]
Handler = Callable[[Any, Config, Arrays], RecordDict]
Find = Callable[[Mapping[str, Any], Context], "Role"]

UNUSABLE_DATA = "this node's data or files can't be used; its own log says why"
PRIVATE = (DataError, OSError)
"""Errors that may quote labels, or name files."""


class Role(ABC):
    """What a node is in a system: private data and models, and answers to messages.

    Attributes
    ----------
    handlers : dict of str to callable
        What answers a kind of message: ``handler(role, config, arrays)``.
    compute : Compute
    vault : AnyVault
        Where it keeps what must outlive a message; set once it has joined a run.
    place : str
        Which node of somebody's own app it is; set with the vault.
    """

    handlers: ClassVar[Mapping[str, Handler]] = {}
    compute: Compute
    vault: AnyVault
    place = ""

    @abstractmethod
    def describe_data(self) -> dict[str, int | str]:
        """Return what the server learns of the data when this node joins."""

    def roll_back(self, turn: int) -> None:  # noqa: B027
        """Go back to a turn of a run that was stopped; -1: to the beginning."""

    def accept(self, words: Mapping[str, Any]) -> None:  # noqa: B027
        """Take what the server says at a join; RequestError if this node does not do that."""

    def bind(self, vault: AnyVault) -> None:
        """Take the place where to keep what must outlive a message."""
        self.vault = vault

    @classmethod
    def app(cls, factory: Callable[[Context], Self]) -> ClientApp:
        """Return a ClientApp around private models and data; add handlers of your own to it.

        Parameters
        ----------
        factory : callable
            Called with the Context of a node, as often as a process needs it; returns who the node
            is. ``context.node_config["partition-id"]`` tells which one it is in a simulation.
        """
        app, own = ClientApp(), OwnApp(cls, factory)
        app.query("hello")(hello)
        app.query("join")(own.join)
        cls.register(app, own)
        return app

    @classmethod
    def register(cls, app: ClientApp, own: OwnApp) -> None:
        """Let an app answer what nodes of this class answer."""
        add_handlers(app, cls.handlers, own.find)


class OwnApp:
    """The nodes of somebody's own app that this process has met."""

    def __init__(self, kind: type[Role], factory: Callable[[Context], Role]) -> None:
        self.kind = kind
        self.factory = factory
        self._memory = Memory()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process may have: no node of this one."""
        return {**self.__dict__, "_memory": Memory()}

    def join(self, message: Message, context: Context) -> Message:
        """Say who this node is, and what data it holds."""
        words = protocol.words_of(message.content)

        @keep_to_itself()
        def content() -> RecordDict:
            role = self._make(words, context)
            role.accept(words)
            place = context.node_config.get("partition-id", context.node_id)
            about = {"name": f"node-{place}", "content": "", **role.describe_data()}
            # Only now: terms that it refused are not in force.
            self._roles[self._key(words, context)] = role
            return protocol.statement(about)

        return reply_once(message, context, str(words["run"]), content)

    def find(self, config: Mapping[str, Any], context: Context) -> Role:
        """Return who a message is for; in a fresh process, made anew."""
        key, roles = self._key(config, context), self._roles
        if key not in roles:
            roles[key] = self._make(config, context)
        role: Role = roles[key]
        return role

    @property
    def _roles(self) -> dict[tuple[Any, str, int], Any]:
        return (current_memory() or self._memory).roles

    def _key(self, config: Mapping[str, Any], context: Context) -> tuple[Any, str, int]:
        return self, f"{context.run_id}/{config['run']}", context.node_id

    def _make(self, config: Mapping[str, Any], context: Context) -> Role:
        with keep_to_itself((Exception,)):
            role = self.factory(context)
        if not isinstance(role, self.kind):
            raise TypeError(
                f"the client factory returned a {type(role).__name__}; it must return a "
                f"{self.kind.__name__}"
            )
        role.place = str(context.node_config.get("partition-id", context.node_id))
        role.bind(own_vault(context, str(config["run"])))
        return role


def hello(message: Message, context: Context) -> Message:
    """Say which partition this node is, and which code it runs."""
    words: dict[str, protocol.Scalar] = {
        "partition": int(context.node_config.get("partition-id", -1)),
        "code": protocol.code_fingerprint(),
    }
    return Message(protocol.statement(words), reply_to=message)


def add_handlers(app: ClientApp, handlers: Mapping[str, Handler], find: Find) -> None:
    """Let an app answer the kinds of messages, such as ``train.gradient``, that a role knows.

    Parameters
    ----------
    find : callable
        Returns the role that a message is for, given its config and context.
    """
    for kind, handler in handlers.items():
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(_wrap_handler(handler, find))


def _wrap_handler(handler: Handler, find: Find) -> Callable[[Message, Context], Message]:
    """Turn ``handler(role, config, arrays)`` into a Flower message handler."""

    def answer(message: Message, context: Context) -> Message:
        config = protocol.words_of(message.content)

        @keep_to_itself()
        def content() -> RecordDict:
            role = find(config, context)
            arrays = protocol.arrays_of(message.content)
            tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
            with role.compute.use_threads():
                try:
                    return handler(role, config, tensors)
                except torch.OutOfMemoryError as error:
                    torch.cuda.empty_cache()
                    raise RuntimeError(f"out of GPU memory: {error}") from error

        return reply_once(message, context, str(config["run"]), content)

    return answer


def run_of(context: Context) -> str:
    """Return the name of a run of somebody else's strategy, whose messages do not say one.

    A ``run`` in them is another setting: of any form, and the same from run to run.
    """
    return f"flower-{context.run_id}"


def reply_once(
    message: Message, context: Context, run: str, content: Callable[[], RecordDict]
) -> Message:
    """Return the reply to a message; in a simulation, nobody asks twice."""
    exchange = exchange_of(message)
    if not exchange and not is_deployed(context):
        return Message(content(), reply_to=message)
    vault = own_vault(context, run)
    if exchange:
        return Message(answer_once(vault, exchange, content), reply_to=message)
    with vault.alone() as alone:  # of a deployed node, two processes may be at work at once
        return Message(content() if alone else protocol.busy(), reply_to=message)


@contextmanager
def keep_to_itself(kinds: tuple[type[Exception], ...] = PRIVATE) -> Iterator[None]:
    """Log errors on the node, and raise RuntimeErrors that say nothing of its files and images.

    On Pudica's own engines, and where a disk is full, errors are raised as they are.
    """
    try:
        yield
    except kinds as error:
        # That a disk is full, and no more.
        is_harmless = (
            isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None
        )
        if current_memory() is not None or is_harmless:
            raise
        log(WARN, "%s: %s", type(error).__name__, error)
        raise RuntimeError(UNUSABLE_DATA) from error
