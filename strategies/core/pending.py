"""Messages whose replies are still to come, and what happened to those that never do."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from logging import INFO
from typing import Protocol
from weakref import WeakSet

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from pudica.models.printable import escape_hidden

REPEAT_SECONDS, SELDOM_SECONDS = 60.0, 600.0
LOOK_SECONDS = 2.0
BUSY_SECONDS = 30.0
# How a ClientApp reports what it raised.
RAISED = re.compile(r"^<class '(?:\w+\.)*(\w+)'>:<'(.*)'>$", re.DOTALL)
# What Flower reports of messages whose reply will not come, though the node may well give one.
LOST = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
LONGEST_REASON = 500


class Observer(Protocol):
    """Hears what happens on a grid; a :class:`.Recorder` is one."""

    def event(self, text: str) -> None:
        """Take one line on what happened."""

    def count_exchange(self, kind: str, sent: int, received: int) -> None:
        """Count one message and its reply, in bytes of payload."""

    def set_node_status(self, node: str, status: str) -> None:
        """Take what a node is doing now."""


class LoggingObserver:
    """Puts events into Flower's log and drops the rest."""

    def event(self, text: str) -> None:
        """Log one line."""
        log(INFO, "%s", text)

    def count_exchange(self, kind: str, sent: int, received: int) -> None:
        """Nothing: the grid counts bytes by node."""

    def set_node_status(self, node: str, status: str) -> None:
        """Nothing: who wants to see it has an observer."""


@dataclass
class PendingRequest:
    """A message to a node, as often as it was sent.

    Attributes
    ----------
    message : Message
        As it was first.
    exchange : str
        By which the node recognises a repetition; empty if it need not.
    limit, deadline : float
        For how many seconds the node may take, and until when; infinite if it may for ever.
    repeat_at, pause, busy_pause : float
        When it is sent again, how long after that the next time, and how long after the node has
        said that it is at work.
    rest : float
        How long the node is left alone once more, after it has failed or was restarted.
    crashes : int
        How often the node was killed at work.
    started : str
        When the node was started: it knows nothing of what it was asked before.
    open : list of str
        The ids of messages to which a reply may come.
    away_since : float or None
    first : str
        The id under which it was sent first; empty until then.
    """

    message: Message
    exchange: str
    limit: float
    deadline: float
    repeat_at: float
    pause: float
    started: str
    busy_pause: float = BUSY_SECONDS
    rest: float = LOOK_SECONDS
    crashes: int = 0
    open: list[str] = field(default_factory=list)
    away_since: float | None = None
    first: str = ""

    @property
    def node(self) -> int:
        """The node's id."""
        return self.message.metadata.dst_node_id

    @property
    def kind(self) -> str:
        """The message's type."""
        return self.message.metadata.message_type

    @property
    def longest_pause(self) -> float:
        """The pause that does not grow any more: within its time a node is asked ten times."""
        return min(max(self.limit / 10, REPEAT_SECONDS), SELDOM_SECONDS)

    def copy(self) -> Message:
        """Return the message anew: Flower takes none twice."""
        old = self.message.metadata
        group = self.exchange or old.group_id
        copy = Message(self.message.content, old.dst_node_id, old.message_type, group_id=group)
        copy.metadata.ttl = old.ttl
        return copy

    def note_sent(self, identifier: str) -> None:
        """Note under which id it was sent; the message gets the first, as on Flower's own grid."""
        if not self.first:
            self.first = identifier
            self.message.metadata.__dict__["_message_id"] = identifier
        self.open.append(identifier)

    def settle(self, reply: Message) -> Message:
        """Return a reply as one to the message that the caller has; the grid counts its error."""
        reply.metadata.__dict__["_reply_to_message_id"] = self.first
        count_once(reply)
        return reply

    def next_rest(self) -> float:
        """Return for how long the node is left alone, twice as long the next time."""
        rest, self.rest = self.rest, min(2 * self.rest, self.longest_pause)
        return rest

    def pause_after(self, message: Message) -> float:
        """Return for how long a node that gave no answer is left alone."""
        if message.has_error():
            return self.next_rest()
        rest, self.busy_pause = self.busy_pause, min(2 * self.busy_pause, self.longest_pause)
        return rest


Pending = dict[int, PendingRequest]


def content_of(message: Message) -> RecordDict:
    """Return what a reply holds: nothing, if it carries something else than records."""
    content = message.content if message.has_content() else None
    return content if isinstance(content, RecordDict) else RecordDict()


_counted: WeakSet[Message] = WeakSet()


def count_once(reply: Message) -> bool:
    """Tell whether nobody has counted a reply's error yet; it is counted now."""
    new = reply not in _counted
    _counted.add(reply)
    return new


def make_no_reply(message: Message, reason: str) -> Message:
    """Return the reply of a node that gives none; whoever makes it has counted it."""
    if not message.metadata.message_id:  # It was not even sent.
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)
    count_once(reply)
    return reply


def describe_error(message: Message) -> str:
    """Return why a node failed, as it says."""
    return RAISED.sub(r"\1: \2", message.error.reason or f"error {message.error.code}")


def make_one_line(text: str) -> str:
    """Return the beginning of a text without anything that a terminal or a log would act on."""
    shown = escape_hidden(text[: LONGEST_REASON + 1])
    return shown if len(shown) <= LONGEST_REASON else f"{shown[:LONGEST_REASON]}…"
