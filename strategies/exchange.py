"""Messages to named nodes, and their replies in a fixed order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from clients.protocol import payload_bytes
from strategies.recorder import Recorder

POLL_SECONDS = 0.02
GIVE_UP_AFTER = 3

T = TypeVar("T")


class TooFewParticipants(RuntimeError):
    """Fewer nodes answered than the experiment needs."""


@dataclass
class _Sent:
    node: str
    content: RecordDict
    deadline: float


class Exchanges:
    """Exchanges with named nodes over any Flower grid.

    A node that answers with an error, too late or not at all has dropped out of that
    exchange: it is logged and counted, and the others go on. A node never has two messages
    at a time.

    Parameters
    ----------
    grid : Grid
    recorder : Recorder
    nodes : dict of str to int
        Node id by name. Replies are handed on in this order, not in that of arrival.
    timeout : float or None
        Seconds until a node counts as dropped out.

    Attributes
    ----------
    dropouts : dict of str to int
        How often each node dropped out, until somebody clears it.
    traffic : dict of str to [int, int]
        Bytes of payload sent to and received from each node.
    """

    def __init__(
        self, grid: Grid, recorder: Recorder, nodes: dict[str, int], timeout: float | None
    ) -> None:
        self.grid = grid
        self.recorder = recorder
        self.nodes = nodes
        self.timeout = timeout
        self.dropouts: dict[str, int] = {}
        self.traffic: dict[str, list[int]] = {}
        self._failures: dict[str, int] = {}
        self._late: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._last_words = ""

    def ask(
        self, kind: str, requests: Mapping[str, RecordDict], read: Callable[[RecordDict], T]
    ) -> dict[str, T]:
        """Send each node its request and return, in node order, what the replies say.

        Parameters
        ----------
        read : callable
            Makes sense of a reply. One that makes none (KeyError, TypeError or ValueError)
            counts as a dropout.
        """
        replies: dict[str, T] = {}

        def keep(name: str, said: T) -> None:
            replies[name] = said

        self.converse(kind, requests, read, keep)
        return {name: replies[name] for name in self.nodes if name in replies}

    def converse(
        self,
        kind: str,
        first: Mapping[str, RecordDict],
        read: Callable[[RecordDict], T],
        answer: Callable[[str, T], RecordDict | None],
    ) -> None:
        """Talk with all nodes at once, each at its own pace.

        Parameters
        ----------
        first : mapping of str to RecordDict
            The first request to each node.
        read : callable
            As in :meth:`ask`.
        answer : callable
            Called with a node's name and what it said; returns the next request to it, or None.
        """

        def answers(said: Mapping[str, T]) -> dict[str, RecordDict]:
            following = {name: answer(name, value) for name, value in said.items()}
            return {name: content for name, content in following.items() if content is not None}

        self.confer(kind, first, read, answers)

    def confer(
        self,
        kind: str,
        first: Mapping[str, RecordDict],
        read: Callable[[RecordDict], T],
        answers: Callable[[Mapping[str, T]], Mapping[str, RecordDict]],
    ) -> None:
        """Talk with all nodes at once, and answer together those whose words came together.

        Parameters
        ----------
        first, read
            As in :meth:`converse`.
        answers : callable
            Called with what some nodes said, by name; returns the next request to each of them
            that there is more to say to.
        """
        self._collect_late()
        flying: dict[str, _Sent] = {}
        self._push(kind, {n: c for n, c in first.items() if self._reachable(n)}, flying)
        while flying:
            looked = time.monotonic()
            arrived = list(self.grid.pull_messages(list(flying)))
            heard = [(flying.pop(m.metadata.reply_to_message_id), m) for m in arrived]
            words = {sent.node: self._said(kind, sent, message, read) for sent, message in heard}
            said = {name: value for name, value in words.items() if value is not None}
            self._push(kind, answers(said) if said else {}, flying)
            self._expire(flying)
            if not arrived and flying:
                # Grids that wait for a reply by themselves are not made to wait twice.
                time.sleep(max(0.0, looked + POLL_SECONDS - time.monotonic()))

    def forgive(self) -> None:
        """Give nodes that were given up one more chance, as an epoch begins."""
        self._told.clear()
        self._failures = {n: min(f, GIVE_UP_AFTER - 1) for n, f in self._failures.items()}

    def need(self, minimum: int, answered: int, kind: str) -> None:
        """Raise TooFewParticipants if fewer than ``minimum`` answered."""
        if answered < minimum:
            last = f" (the last one said: {self._last_words})" if self._last_words else ""
            raise TooFewParticipants(
                f"{kind}: {answered} participants answered, the experiment needs {minimum}{last}; "
                "see events.log; when that is mended, or they are back, resume the run"
            )

    def reject(self, name: str, why: str) -> None:
        """Count a node as dropped out of an exchange, and say why, once an epoch."""
        self.dropouts[name] = self.dropouts.get(name, 0) + 1
        self._last_words = f"{name}: {why}"
        if (name, why) not in self._told:
            self._told.add((name, why))
            self.recorder.event(f"dropout: {name}: {why}")

    # ---------------------------------------------------------------------- internals

    def _push(
        self, kind: str, requests: Mapping[str, RecordDict], flying: dict[str, _Sent]
    ) -> None:
        if not requests:
            return
        messages = [Message(c, self.nodes[n], kind) for n, c in requests.items()]
        deadline = time.monotonic() + self.timeout if self.timeout else float("inf")
        identifiers = self.grid.push_messages(messages)
        for identifier, (name, content) in zip(identifiers, requests.items(), strict=True):
            flying[identifier] = _Sent(name, content, deadline)

    def _said(
        self, kind: str, sent: _Sent, message: Message, read: Callable[[RecordDict], T]
    ) -> T | None:
        if message.has_error():
            self._failed(sent.node, message.error.reason or f"error {message.error.code}")
            return None
        self._failures.pop(sent.node, None)
        self._count(kind, sent.node, payload_bytes(sent.content), payload_bytes(message.content))
        try:
            return read(message.content)
        except (KeyError, TypeError, ValueError) as error:
            why = f"no '{error.args[0]}' in its reply" if isinstance(error, KeyError) else error
            self.reject(sent.node, f"{kind}: {why}")
            return None

    def _count(self, kind: str, name: str, sent: int, received: int) -> None:
        self.recorder.exchanged(kind, sent, received)
        total = self.traffic.setdefault(name, [0, 0])
        total[0] += sent
        total[1] += received

    def _failed(self, name: str, why: str) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        self.reject(name, why.strip().splitlines()[-1] if why.strip() else "no reason given")
        if self._failures[name] == GIVE_UP_AFTER:
            self.recorder.event(f"{name} failed {GIVE_UP_AFTER} times in a row; not asked for now")

    def _reachable(self, name: str) -> bool:
        return self._failures.get(name, 0) < GIVE_UP_AFTER and name not in self._late

    def _expire(self, flying: dict[str, _Sent]) -> None:
        now = time.monotonic()
        for identifier in [i for i, sent in flying.items() if sent.deadline < now]:
            name = flying.pop(identifier).node
            self._late[name] = identifier
            self._failed(name, f"no answer within {self.timeout:g} s")

    def _collect_late(self) -> None:
        """Let nodes whose late answer has come in take part again; the answer is not used."""
        if not self._late:
            return
        arrived = {
            m.metadata.reply_to_message_id
            for m in self.grid.pull_messages(list(self._late.values()))
        }
        self._late = {n: i for n, i in self._late.items() if i not in arrived}
