"""What crosses between a server and its nodes, message by message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from pudica.strategies.core.wrapped_grid import WrappedGrid


class Exchanged(NamedTuple):
    """A request and its reply.

    Attributes
    ----------
    node : int
        Flower's id of the node.
    kind : str
        The messages' type; see :mod:`pudica.clients.protocol`.
    request, reply : RecordDict
    """

    node: int
    kind: str
    request: RecordDict
    reply: RecordDict


class WireLog(WrappedGrid):
    """A grid that shows each reply, with its request, before it hands it on.

    Parameters
    ----------
    grid : Grid
    note : callable
        Called with each :class:`Exchanged`, in the order in which replies arrive. Replies that
        carry an error carry nothing else, and are left out.
    """

    def __init__(self, grid: Grid, note: Callable[[Exchanged], None]) -> None:
        super().__init__(grid)
        self._note = note
        self._requests: dict[str, Message] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what only this kind of grid has."""
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and return their ids."""
        sent = list(messages)
        identifiers = list(self.grid.push_messages(sent))
        self._requests |= zip(identifiers, sent, strict=True)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages that are there."""
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            self._show(reply, self._requests.pop(reply.metadata.reply_to_message_id))
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies, which are matched by their nodes."""
        sent = {message.metadata.dst_node_id: message for message in messages}
        replies = list(self.grid.send_and_receive(sent.values(), timeout=timeout))
        for reply in replies:
            self._show(reply, sent[reply.metadata.src_node_id])
        return replies

    def _show(self, reply: Message, request: Message) -> None:
        if reply.has_error():
            return
        meta = request.metadata
        self._note(Exchanged(meta.dst_node_id, meta.message_type, request.content, reply.content))
