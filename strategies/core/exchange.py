"""Messages to named nodes, and their replies in a fixed order."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from pudica.clients.protocol import is_busy, payload_bytes
from pudica.models.printable import escape_hidden
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.registry import is_removed

POLL_SECONDS = 0.02
GIVE_UP_AFTER = 3
REPEAT_SECONDS, SELDOM_SECONDS = 60.0, 600.0
LOOK_SECONDS = 2.0
BUSY_SECONDS = 30.0
STUMBLES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# How a ClientApp says what it raised.
RAISED = re.compile(r"^<class '(?:\w+\.)*(\w+)'>:<'(.*)'>$", re.DOTALL)
# What Flower says of messages whose answer will not come, though the node may well give one.
LOST = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)

LONGEST_REASON = 500
CLOSED = "no answer before the stage was closed"
DEFAULT = ClientConfig()

T = TypeVar("T")


class TooFewParticipants(RuntimeError):
    """Fewer nodes answered than the experiment needs."""


@dataclass
class _Asked:
    """What a node was asked, as often as it was.

    Attributes
    ----------
    exchange : str
        By which the node knows a repetition; empty if it is not to.
    open : list of str
        The messages to which an answer may come.
    again, pause, busy : float
        When it is repeated, how long after that the next time, and how long after the node has
        said that it is at work.
    rest : float
        How long it is left in peace once more, when it has failed or begun anew.
    crashes : int
        How often it was killed at work.
    since : str
        When the node was started: what it was asked before that, it does not know.
    away : float or None
        Since when the node is away.
    """

    node: str
    content: RecordDict
    exchange: str
    deadline: float
    again: float
    pause: float
    since: str
    busy: float = BUSY_SECONDS
    rest: float = LOOK_SECONDS
    crashes: int = 0
    open: list[str] = field(default_factory=list)
    away: float | None = None


class Exchanges:
    """Exchanges with named nodes over any Flower grid.

    A node that answers with an error, too late or not at all has dropped out of that
    exchange: it is logged and counted, and the others go on. A node is never asked two things
    at a time.

    Where nodes may be killed and come back (``client.patience``), one that is silent is asked
    the same again, under the same exchange's name: it does once what it is asked, and says it
    twice. Each time it is left in peace for longer.

    Parameters
    ----------
    grid : Grid
    recorder : Recorder
    nodes : dict of str to int
        Node id by name. Replies are handed on in this order, not in that of arrival.
    client : ClientConfig
        How long nodes may take, and may be away.

    Attributes
    ----------
    dropouts : dict of str to int
        How often each node dropped out, until somebody clears it.
    traffic : dict of str to [int, int]
        Bytes of payload sent to and received from each node.
    """

    def __init__(
        self,
        grid: Grid,
        recorder: Recorder,
        nodes: dict[str, int],
        client: ClientConfig = DEFAULT,
    ) -> None:
        self.grid = grid
        self.recorder = recorder
        self.nodes = nodes
        self.client = client
        self.dropouts: dict[str, int] = {}
        self.traffic: dict[str, list[int]] = {}
        self._failures: dict[str, int] = {}
        self._late: dict[str, str] = {}
        self._away: set[str] = set()
        self._over: Callable[[], bool] | None = None
        self._endless = False
        self._told: set[tuple[str, str]] = set()
        self._last_words = ""
        self._looked = 0.0

    def ask(
        self, kind: str, requests: Mapping[str, RecordDict], read: Callable[[str, RecordDict], T]
    ) -> dict[str, T]:
        """Send each node its request and return, in node order, what the replies say.

        Parameters
        ----------
        read : callable
            Makes sense of a reply, given the node's name and what it says. One that makes none
            (KeyError, TypeError or ValueError) counts as a dropout, so nothing may have changed
            by then.
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
        read: Callable[[str, RecordDict], T],
        answer: Callable[[str, T], RecordDict | None],
        more: Callable[[], Mapping[str, RecordDict]] = dict,
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
        more : callable
            Called now and then; returns the first request to nodes that are new.
        """

        def answers(said: Mapping[str, T], _: int) -> dict[str, RecordDict]:
            following = {name: answer(name, value) for name, value in said.items()}
            return {name: content for name, content in following.items() if content is not None}

        self.confer(kind, first, read, answers, more)

    def confer(
        self,
        kind: str,
        first: Mapping[str, RecordDict],
        read: Callable[[str, RecordDict], T],
        answers: Callable[[Mapping[str, T], int], Mapping[str, RecordDict]],
        more: Callable[[], Mapping[str, RecordDict]] = dict,
    ) -> None:
        """Talk with all nodes at once, and answer several of them together.

        Parameters
        ----------
        first, read
            As in :meth:`converse`.
        answers : callable
            Called now and then with what some nodes said, by name, and how many are still to say
            something; returns the next request to those that there is more to say to, now or
            later. With nobody to wait for it must not put off any.
        more
            As in :meth:`converse`.
        """
        self._collect_late()
        self._collect_returned()
        flying: dict[str, _Asked] = {}
        self._ask(kind, {n: c for n, c in first.items() if self._reachable(n)}, flying)
        while flying:
            looked = time.monotonic()
            heard = self._heard(flying)
            words = {asked.node: self._said(kind, asked, message, read) for asked, message in heard}
            said = {name: value for name, value in words.items() if value is not None}
            self._expire(flying)
            self._repeat(kind, flying)
            self._ask(kind, answers(said, len(flying)), flying)
            self._ask(kind, more(), flying)
            if not heard and flying:
                # Grids that wait for a reply by themselves are not made to wait twice.
                time.sleep(max(0.0, looked + POLL_SECONDS - time.monotonic()))

    @contextmanager
    def until(self, over: Callable[[], bool], endless: bool = False) -> Iterator[None]:
        """End exchanges when something is over.

        Parameters
        ----------
        over : callable
        endless : bool
            Wait until then for every node, however long it takes, is away, or fails.
        """
        self._over, self._endless = over, endless
        try:
            yield
        finally:
            self._over, self._endless = None, False

    def forgive(self) -> None:
        """Give nodes that were given up one more chance, as an epoch begins."""
        self._told.clear()
        self._failures = {n: min(f, GIVE_UP_AFTER - 1) for n, f in self._failures.items()}

    def need(self, minimum: int, answered: int, kind: str) -> None:
        """Raise TooFewParticipants if fewer than ``minimum`` answered.

        What came until something was over counts, however little it is.
        """
        if answered < minimum and not self._is_over():
            last = f" (the last one said: {self._last_words})" if self._last_words else ""
            raise TooFewParticipants(
                f"{kind}: {answered} participants answered, the experiment needs {minimum}{last}; "
                "see events.log; when that is mended, or they are back, resume the run"
            )

    def reject(self, name: str, why: str) -> None:
        """Count a node as dropped out of an exchange, and say why, once an epoch.

        What nodes say may stand in the reason: it becomes one line, of limited length.
        """
        why = _one_line(why)
        self.dropouts[name] = self.dropouts.get(name, 0) + 1
        self._last_words = f"{name}: {why}"
        self._tell(name, f"dropout: {name}: {why}")

    # ---------------------------------------------------------------------- internals

    def _tell(self, name: str, what: str) -> None:
        """Note what happened to a node, once an epoch."""
        if (name, what) not in self._told:
            self._told.add((name, what))
            self.recorder.event(what)

    def _ask(
        self, kind: str, requests: Mapping[str, RecordDict], flying: dict[str, _Asked]
    ) -> None:
        if not requests:
            return
        now, repeats = time.monotonic(), self.client.patience is not None
        limit = None if self._endless else self.client.timeout
        deadline = now + (limit or float("inf"))
        pause = REPEAT_SECONDS if repeats else float("inf")
        begun = self._begun() if repeats else {}
        asked = [
            _Asked(
                name,
                content,
                uuid.uuid4().hex if repeats else "",
                deadline,
                now + pause,
                pause,
                begun.get(self.nodes[name], ""),
            )
            for name, content in requests.items()
        ]
        self._push(kind, asked)
        flying.update({one.node: one for one in asked})
        self._stand(requests, f"at work ({kind})")

    def _push(self, kind: str, asked: list[_Asked]) -> None:
        if not asked:
            return

        def pushed() -> list[str]:
            # Anew each time: Flower takes no message twice, nodes take an exchange for what it is.
            messages = [
                Message(one.content, self.nodes[one.node], kind, group_id=one.exchange)
                for one in asked
            ]
            return list(self.grid.push_messages(messages))

        for one, identifier in zip(asked, self._surely(pushed), strict=True):
            one.open.append(identifier)

    def _surely(self, call: Callable[[], T]) -> T:
        """Return what a call of a deployed server gives, though it may stumble now and then.

        Under load Flower's database is locked for longer than Flower waits for it.
        """
        for pause in STUMBLES if self.client.patience is not None else ():
            try:
                return call()
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
                what = str(error).partition("\n")[0]
                self.recorder.event(f"the server stumbled, and is asked again: {what}")
                time.sleep(pause)
        return call()

    def _heard(self, flying: dict[str, _Asked]) -> list[tuple[_Asked, Message]]:
        """Return what has come of answers; who has none to give yet is asked again later."""
        owners = {identifier: asked for asked in flying.values() for identifier in asked.open}
        heard = []
        for message in self._surely(lambda: self._pulled(owners)):
            identifier = message.metadata.reply_to_message_id
            asked = owners[identifier]
            asked.open.remove(identifier)
            if asked.exchange and self._is_no_answer(asked, message):
                if not asked.open:
                    asked.again = min(asked.again, time.monotonic() + _rest(asked, message))
            elif flying.pop(asked.node, None):
                heard.append((asked, message))
        self._stand((asked.node for asked, _ in heard), "answered")
        return heard

    def _is_no_answer(self, asked: _Asked, message: Message) -> bool:
        """Tell whether a reply says no more than that its answer is lost, or is still to come."""
        if not message.has_error():
            return is_busy(_content(message))
        code = message.error.code
        if code == ErrorCode.CLIENT_APP_CRASHED:
            asked.crashes += 1
        if self._endless:
            why = _one_line(_why(message))
            self._tell(asked.node, f"{asked.node} failed, and is asked again: {why}")
            return True
        return code in LOST and asked.crashes < GIVE_UP_AFTER

    def _pulled(self, identifiers: Iterable[str]) -> list[Message]:
        wanted = list(identifiers)
        return list(self.grid.pull_messages(wanted)) if wanted else []

    def _repeat(self, kind: str, flying: dict[str, _Asked]) -> None:
        """Ask again those who are silent for long, or were started anew since they were asked.

        Those who are away are waited for, but not for ever. A node that is still at work says so,
        and is left in peace for longer and longer.
        """
        now = time.monotonic()
        if self.client.patience is None or now < self._looked + LOOK_SECONDS:
            return
        self._looked, begun = now, self._begun()
        for asked in list(flying.values()):
            since = begun.get(self.nodes[asked.node])
            if since is None:
                self._miss(asked, flying)
            elif since != asked.since:
                asked.away, asked.since = None, since
                asked.again = min(asked.again, now + _doubled(asked))
            elif asked.again <= now:
                asked.away, asked.again = None, now + asked.pause
                asked.pause = min(2 * asked.pause, SELDOM_SECONDS)
                self.recorder.event(f"{kind} asked again: {asked.node}")
                self._push(kind, [asked])
                self._stand([asked.node], f"at work ({kind})")
            else:
                asked.away = None

    def _begun(self) -> dict[int, str]:
        """Return when each node that is there was started, by its id; Flower knows of real ones."""
        nodes = self._surely(lambda: list(self.grid.get_nodes()))
        return {node.node_id: node.last_activated_at for node in nodes}

    def _miss(self, asked: _Asked, flying: dict[str, _Asked]) -> None:
        """Note that a node is away, and for how long."""
        now, patience = time.monotonic(), self.client.patience or 0.0
        if is_removed(self.nodes[asked.node]):
            del flying[asked.node]
            self._away.add(asked.node)
            self._failed(asked.node, "it was removed by the organiser")
        elif asked.away is None:
            asked.away = now
            self.recorder.event(f"{asked.node} is away; waiting for it")
            self._stand([asked.node], "away")
        elif now - asked.away > patience and not self._endless:
            del flying[asked.node]
            self._away.add(asked.node)
            self._failed(asked.node, f"away for more than {patience:g} s")

    def _said(
        self, kind: str, sent: _Asked, message: Message, read: Callable[[str, RecordDict], T]
    ) -> T | None:
        if message.has_error():
            self._failed(sent.node, _why(message))
            return None
        self._failures.pop(sent.node, None)
        content = _content(message)
        self._count(kind, sent.node, payload_bytes(sent.content), payload_bytes(content))
        try:
            return read(sent.node, content)
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
        why = why.strip().splitlines()[-1] if why.strip() else "no reason given"
        self._stand([name], f"dropped out ({_one_line(why)})")
        self._failures[name] = self._failures.get(name, 0) + 1
        self.reject(name, why)
        if self._failures[name] == GIVE_UP_AFTER:
            self.recorder.event(f"{name} failed {GIVE_UP_AFTER} times in a row; not asked for now")

    def _stand(self, names: Iterable[str], state: str) -> None:
        """Say how it stands with nodes, where they are real: in a simulation all is quick."""
        if self.client.patience is not None:
            for name in names:
                self.recorder.stands(name, state)

    def _is_over(self) -> bool:
        return self._over is not None and self._over()

    def _reachable(self, name: str) -> bool:
        if self._is_over():
            self.reject(name, CLOSED)
            return False
        given_up = self._failures.get(name, 0) >= GIVE_UP_AFTER
        away = name in self._away and not self._endless
        return not given_up and name not in self._late and not away

    def _expire(self, flying: dict[str, _Asked]) -> None:
        now, over = time.monotonic(), self._is_over()
        for name in [name for name, asked in flying.items() if over or asked.deadline < now]:
            asked = flying.pop(name)
            # Who knows a repetition says itself that it is still at work.
            if not asked.exchange:
                self._late[name] = asked.open[0]
            self._failed(name, CLOSED if over else f"no answer within {self.client.timeout:g} s")

    def _collect_late(self) -> None:
        """Let nodes whose late answer has come in take part again; the answer is not used."""
        if not self._late:
            return
        arrived = {
            m.metadata.reply_to_message_id
            for m in self.grid.pull_messages(list(self._late.values()))
        }
        self._late = {n: i for n, i in self._late.items() if i not in arrived}

    def _collect_returned(self) -> None:
        """Let nodes that were away and are back take part again."""
        if self._away:
            here = set(self.grid.get_node_ids())
            self._away = {name for name in self._away if self.nodes.get(name) not in here}


def _doubled(asked: _Asked) -> float:
    """Return for how long a node is left in peace, twice as long the next time."""
    rest, asked.rest = asked.rest, min(2 * asked.rest, SELDOM_SECONDS)
    return rest


def _rest(asked: _Asked, message: Message) -> float:
    """Return for how long a node that gave no answer is left in peace."""
    if message.has_error():
        return _doubled(asked)
    rest, asked.busy = asked.busy, min(2 * asked.busy, SELDOM_SECONDS)
    return rest


def _content(message: Message) -> RecordDict:
    """Return what a reply says: nothing, if it carries something else than records."""
    content = message.content if message.has_content() else None
    return content if isinstance(content, RecordDict) else RecordDict()


def _why(message: Message) -> str:
    """Return why a node failed, as it says."""
    return RAISED.sub(r"\1: \2", message.error.reason or f"error {message.error.code}")


def _one_line(text: str) -> str:
    """Return the beginning of a text without anything that a terminal or a log would act on."""
    shown = escape_hidden(text[: LONGEST_REASON + 1])
    return shown if len(shown) <= LONGEST_REASON else f"{shown[:LONGEST_REASON]}…"
