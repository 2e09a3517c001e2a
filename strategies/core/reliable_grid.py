"""A Flower grid that copes with nodes that are slow, silent, killed, or gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from pudica.clients.protocol import is_busy, payload_bytes
from pudica.clients.runtime.idempotency import new_exchange
from pudica.strategies.core.pending import (
    LOOK_SECONDS,
    LOST,
    REPEAT_SECONDS,
    LoggingObserver,
    Observer,
    Pending,
    PendingRequest,
    content_of,
    describe_error,
    make_no_reply,
    make_one_line,
)
from pudica.strategies.core.streams import MessageStream, MessageStreamBatched
from pudica.strategies.core.wrapped_grid import WrappedGrid

POLL_SECONDS = 0.02
GIVE_UP_AFTER = 3
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

CLOSED = "no answer before the stage was closed"

T = TypeVar("T")


class TooFewParticipants(RuntimeError):
    """Fewer nodes replied than are needed."""


class ReliableGrid(WrappedGrid):
    """A grid around any other: deadlines, repetition, dropouts, byte counts.

    A node that replies with an error, too late or not at all has dropped out of that exchange: it
    is logged and counted, the reply that is handed on carries an error, and the others go on. One
    that fails three times in a row is not asked any more until :meth:`reset_failures`; one that
    still owes a reply is asked nothing before that has come.

    With ``patience``, nodes may be killed and come back. One that is silent is sent the same
    message again under its ``group_id``, less and less often; its app should do it once, and
    answer twice, as Pudica's apps do. A node that restarts is asked again at once.

    Parameters
    ----------
    grid : Grid
        Flower's, or one of :mod:`pudica.simulations.engines`.
    timeout : float, optional
        Seconds after which a node that has not replied counts as dropped out.
    patience : float, optional
        Seconds for which a node may be away. Without, nobody is asked twice.
    is_removed : callable, optional
        Tells of a node's id whether it was removed for good, so that nobody waits for it.
    observer : Observer, optional
        Hears of dropouts and the like; by default Flower's log does.

    Attributes
    ----------
    names : dict of int to str
        What nodes are called in the log; others by their ids.
    dropouts : dict of str to int
        How often each node dropped out, until somebody clears it.
    traffic : dict of str to [int, int]
        Bytes of payload sent to and received from each node, by its name.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout: float | None = None,
        patience: float | None = None,
        is_removed: Callable[[int], bool] | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(grid)
        self.timeout = timeout
        self.patience = patience
        self.is_removed = is_removed
        self.observer = observer or LoggingObserver()
        self.names: dict[int, str] = {}
        self.dropouts: dict[str, int] = {}
        self.traffic: dict[str, list[int]] = {}
        self._numbers = count()
        self._failures: dict[int, int] = {}
        self._late: dict[int, str] = {}
        self._away: set[int] = set()
        self._is_over: Callable[[], bool] | None = None
        self._endless = False
        self._reported: set[tuple[str, str]] = set()
        self._last_reason = ""
        self._looked = 0.0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return the replies in their order, once all are there.

        Parameters
        ----------
        messages : iterable of Message
        timeout : float, optional
            In place of the grid's own, if it is shorter.

        Returns
        -------
        list of Message
            One for each; :meth:`Message.has_error` where a node has dropped out.
        """
        pending, refused = self._open(messages, timeout)
        replies = dict(refused)
        while pending:
            replies.update(self._poll(pending))
        return [replies[number] for number in sorted(replies)]

    def stream(
        self, messages: Iterable[Message] = (), *, timeout: float | None = None
    ) -> MessageStream:
        """Send messages; iterate over the replies, each as it comes.

        What is sent meanwhile (:meth:`MessageStream.send`) joins the stream, so that each node
        goes at its own pace:

        >>> stream = grid.stream(first)
        >>> for reply in stream:
        ...     stream.send([next_message(reply)])
        """
        return MessageStream(self, messages, timeout)

    def stream_batched(
        self, messages: Iterable[Message] = (), *, timeout: float | None = None
    ) -> MessageStreamBatched:
        """As :meth:`stream`, but iterate over lists of the replies that have come meanwhile.

        A list is empty where none has: there is time to see who else is there.
        """
        return MessageStreamBatched(self, messages, timeout)

    @contextmanager
    def deadline(self, is_over: Callable[[], bool], endless: bool = False) -> Iterator[None]:
        """End all exchanges inside once something is over.

        Parameters
        ----------
        is_over : callable
        endless : bool
            Until then wait for every node, however long it takes, is away, or fails.
        """
        self._is_over, self._endless = is_over, endless
        try:
            yield
        finally:
            self._is_over, self._endless = None, False

    def has_closed(self) -> bool:
        """Tell whether the deadline that holds now is over."""
        return self._is_over is not None and self._is_over()

    def reset_failures(self) -> None:
        """Give nodes that were given up one more chance, as when an epoch begins."""
        self._reported.clear()
        self._failures = {n: min(f, GIVE_UP_AFTER - 1) for n, f in self._failures.items()}

    def reject(self, node: int, reason: str) -> None:
        """Count a node as dropped out of an exchange, and say why, once an epoch.

        The reason may quote what a node said: it becomes one line, of limited length.
        """
        name, reason = self.name_of(node), make_one_line(reason)
        self.dropouts[name] = self.dropouts.get(name, 0) + 1
        self._last_reason = f"{name}: {reason}"
        self._report(name, f"dropout: {name}: {reason}")

    def require_min_replies(self, minimum: int, replied: int, kind: str) -> None:
        """Raise TooFewParticipants if fewer than ``minimum`` replied before a deadline was over."""
        if replied < minimum and not self.has_closed():
            last = f" (the last one said: {self._last_reason})" if self._last_reason else ""
            raise TooFewParticipants(
                f"{kind}: {replied} participants answered, the experiment needs {minimum}{last}; "
                "the log says more; when that is mended, or they are back, start or resume the run"
            )

    def name_of(self, node: int) -> str:
        """Return what a node is called."""
        return self.names.get(node, str(node))

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are there."""
        return self._with_retries(super().get_node_ids)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes that are there."""
        return self._with_retries(lambda: list(self.grid.get_nodes()))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to such messages that are there."""
        wanted = list(message_ids)
        return self._with_retries(lambda: list(self.grid.pull_messages(wanted)))

    def _open(
        self, messages: Iterable[Message], timeout: float | None
    ) -> tuple[Pending, dict[int, Message]]:
        """Begin an exchange; return what is pending, and the replies of those not asked."""
        self._collect_late()
        self._collect_returned()
        return self._send(messages, timeout)

    def _send(
        self, messages: Iterable[Message], timeout: float | None
    ) -> tuple[Pending, dict[int, Message]]:
        numbered = {next(self._numbers): message for message in messages}
        refused = {n: r for n, m in numbered.items() if (r := self._refused(m)) is not None}
        left = {n: m for n, m in numbered.items() if n not in refused}
        if not left:
            return {}, refused
        now, repeats = time.monotonic(), self.patience is not None
        limits = [limit for limit in (self.timeout, timeout) if limit is not None]
        limit = min(limits) if limits and not self._endless else float("inf")
        pause = REPEAT_SECONDS if repeats else float("inf")
        started = self._start_times() if repeats else {}
        pending = {
            number: PendingRequest(
                message,
                new_exchange() if repeats else "",
                limit,
                now + limit,
                now + pause,
                pause,
                started.get(message.metadata.dst_node_id, ""),
            )
            for number, message in left.items()
        }
        self._push(list(pending.values()))
        for request in pending.values():
            self._set_status(request.node, f"at work ({request.kind})")
        return pending, refused

    def _refused(self, message: Message) -> Message | None:
        """Return the reply for a node that can't be asked now; None if it can."""
        node = message.metadata.dst_node_id
        if self.has_closed():
            self.reject(node, CLOSED)
            return make_no_reply(message, CLOSED)
        if self._failures.get(node, 0) >= GIVE_UP_AFTER:
            return make_no_reply(message, f"it failed {GIVE_UP_AFTER} times in a row")
        if node in self._late:
            return make_no_reply(message, "it still owes an earlier reply")
        if node in self._away and not self._endless:
            return make_no_reply(message, "it is away")
        return None

    def _push(self, requests: list[PendingRequest]) -> None:
        if not requests:
            return

        def push() -> list[str]:
            return list(self.grid.push_messages([request.copy() for request in requests]))

        for request, identifier in zip(requests, self._with_retries(push), strict=True):
            request.note_sent(identifier)

    def _with_retries(self, call: Callable[[], T]) -> T:
        """Return what a call of a deployed server gives, though it may fail now and then.

        Under load Flower's database is locked for longer than Flower waits for it.
        """
        for pause in RETRY_SECONDS if self.patience is not None else ():
            try:
                return call()
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
                what = str(error).partition("\n")[0]
                self.observer.event(f"the server stumbled, and is asked again: {what}")
                time.sleep(pause)
        return call()

    def _poll(self, pending: Pending) -> dict[int, Message]:
        """Return what is settled by now, replies and dropouts, and take it out of ``pending``."""
        looked = time.monotonic()
        settled = self._collect_replies(pending)
        replied = bool(settled)
        settled |= self._expire(pending)
        settled |= self._repeat(pending)
        if not replied and pending:
            # Grids that wait for a reply by themselves are not made to wait twice.
            time.sleep(max(0.0, looked + POLL_SECONDS - time.monotonic()))
        return settled

    def _collect_replies(self, pending: Pending) -> dict[int, Message]:
        """Return the replies that have come; a node that has none to give yet is asked later."""
        owners = {i: number for number, request in pending.items() for i in request.open}
        settled: dict[int, Message] = {}
        for message in self.pull_messages(owners) if owners else ():
            identifier = message.metadata.reply_to_message_id
            number = owners[identifier]
            if (request := pending.get(number)) is None:
                continue  # its second reply
            request.open.remove(identifier)
            if request.exchange and self._is_no_answer(request, message):
                if not request.open:
                    pause = request.pause_after(message)
                    request.repeat_at = min(request.repeat_at, time.monotonic() + pause)
            else:
                settled[number] = self._settle(pending.pop(number), message)
        return settled

    def _settle(self, request: PendingRequest, message: Message) -> Message:
        """Note that a reply has come."""
        self._set_status(request.node, "answered")
        if request.settle(message).has_error():
            self._fail(request.node, describe_error(message))
            return message
        self._failures.pop(request.node, None)
        content = content_of(message)
        sent, received = payload_bytes(request.message.content), payload_bytes(content)
        self.observer.count_exchange(request.kind, sent, received)
        total = self.traffic.setdefault(self.name_of(request.node), [0, 0])
        total[0] += sent
        total[1] += received
        return message

    def _is_no_answer(self, request: PendingRequest, message: Message) -> bool:
        """Tell whether a reply says no more than that the answer is lost, or is still to come."""
        if not message.has_error():
            return is_busy(content_of(message))
        code = message.error.code
        if code == ErrorCode.CLIENT_APP_CRASHED:
            request.crashes += 1
        if self._endless:
            name, reason = self.name_of(request.node), make_one_line(describe_error(message))
            self._report(name, f"{name} failed, and is asked again: {reason}")
            return True
        return code in LOST and request.crashes < GIVE_UP_AFTER

    def _expire(self, pending: Pending) -> dict[int, Message]:
        now, closed = time.monotonic(), self.has_closed()
        expired = {n: r for n, r in pending.items() if closed or r.deadline < now}
        settled = {}
        for number, request in expired.items():
            del pending[number]
            # A node that recognises a repetition says itself that it is still at work.
            if not request.exchange:
                self._late[request.node] = request.open[0]
            reason = CLOSED if closed else f"no answer within {request.limit:g} s"
            settled[number] = self._drop(request, reason)
        return settled

    def _repeat(self, pending: Pending) -> dict[int, Message]:
        """Ask again those who are silent for long, or were restarted since they were asked.

        Those who are away are waited for, but not for ever; return the replies for those who are
        not any more. A node that is still at work says so, and is left alone longer and longer.
        """
        now = time.monotonic()
        if self.patience is None or now < self._looked + LOOK_SECONDS:
            return {}
        self._looked, started = now, self._start_times()
        settled: dict[int, Message] = {}
        for number, request in list(pending.items()):
            since = started.get(request.node)
            if since is None:
                if reason := self._is_lost(request):
                    del pending[number]
                    self._away.add(request.node)
                    settled[number] = self._drop(request, reason)
            elif since != request.started:
                request.away_since, request.started = None, since
                request.repeat_at = min(request.repeat_at, now + request.next_rest())
            elif request.repeat_at <= now:
                request.away_since, request.repeat_at = None, now + request.pause
                request.pause = min(2 * request.pause, request.longest_pause)
                self.observer.event(f"{request.kind} asked again: {self.name_of(request.node)}")
                self._push([request])
                self._set_status(request.node, f"at work ({request.kind})")
            else:
                request.away_since = None
        return settled

    def _is_lost(self, request: PendingRequest) -> str:
        """Return why nobody waits any more for a node that is away; empty while we do."""
        now, patience = time.monotonic(), self.patience or 0.0
        if self.is_removed is not None and self.is_removed(request.node):
            return "it was removed by the organiser"
        if request.away_since is None:
            request.away_since = now
            self.observer.event(f"{self.name_of(request.node)} is away; waiting for it")
            self._set_status(request.node, "away")
        elif now - request.away_since > patience and not self._endless:
            return f"away for more than {patience:g} s"
        return ""

    def _start_times(self) -> dict[int, str]:
        """Return when each node that is there was started; Flower knows it of real ones."""
        return {node.node_id: node.last_activated_at for node in self.get_nodes()}

    def _drop(self, request: PendingRequest, reason: str) -> Message:
        self._fail(request.node, reason)
        return make_no_reply(request.message, reason)

    def _fail(self, node: int, reason: str) -> None:
        reason = reason.strip().splitlines()[-1] if reason.strip() else "no reason given"
        self._set_status(node, f"dropped out ({make_one_line(reason)})")
        self._failures[node] = self._failures.get(node, 0) + 1
        self.reject(node, reason)
        if self._failures[node] == GIVE_UP_AFTER:
            name = self.name_of(node)
            self.observer.event(f"{name} failed {GIVE_UP_AFTER} times in a row; not asked for now")

    def _report(self, name: str, what: str) -> None:
        """Report what happened to a node, once an epoch."""
        if (name, what) not in self._reported:
            self._reported.add((name, what))
            self.observer.event(what)

    def _set_status(self, node: int, status: str) -> None:
        """Say what a node is doing, where nodes are real: in a simulation all is quick."""
        if self.patience is not None:
            self.observer.set_node_status(self.name_of(node), status)

    def _collect_late(self) -> None:
        """Let nodes whose late reply has come take part again; the reply is not used."""
        if not self._late:
            return
        late = self.pull_messages(self._late.values())
        arrived = {message.metadata.reply_to_message_id for message in late}
        self._late = {n: i for n, i in self._late.items() if i not in arrived}

    def _collect_returned(self) -> None:
        """Let nodes that were away and are back take part again."""
        if self._away:
            self._away -= set(self.get_node_ids())
