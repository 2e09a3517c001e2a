"""Exchanges with named nodes: order, dropouts, late answers, minimum."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from competition_helpers import tiny
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from pudica.clients import protocol
from pudica.simulations.engines.local import LocalGrid, build_server_context
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.registry import REGISTRY, NodeRegistry
from pudica.strategies.core.reliable_grid import POLL_SECONDS, TooFewParticipants

NAMES = ["zoe", "adam", "mia"]


class ScriptedGrid(LocalGrid):
    """Answers with what a function of the node's number returns; None is silence."""

    def __init__(self, answer: Callable[[int], RecordDict | Error | None]) -> None:
        super().__init__(len(NAMES))
        self.answer = answer
        self.ready: list[Message] = []
        self.in_flight: list[int] = []

    def _dispatch(self, message: Message, identifier: str) -> None:
        self.in_flight.append(message.metadata.dst_node_id)
        said = self.answer(message.metadata.dst_node_id - 2)
        if said is not None:
            self.ready.insert(0, Message(said, reply_to=message))  # last asked, first answered

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return one asked-for answer at a time."""
        for message in self.ready:
            if message.metadata.reply_to_message_id in set(message_ids):
                self.ready.remove(message)
                return [message]
        return []


def number(value: int) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"value": value})})


@pytest.fixture
def exchanges_with(tmp_path: Path) -> Iterator[Callable[..., Cohort]]:
    recorder = Recorder(tmp_path / "run", tiny(), "test")

    def make(answer: Callable[[int], RecordDict | Error | None], **client: float) -> Cohort:
        build_server_context({})
        grid = ScriptedGrid(answer)
        nodes = dict(zip(NAMES, grid.get_node_ids(), strict=True))
        cohort = Cohort.on(grid, ClientConfig(**client), recorder)
        cohort.nodes = nodes
        return cohort

    yield make
    recorder.close("done")


def ask(cohort: Cohort, minimum: int = 0) -> dict[str, float]:
    request = protocol.request({"run": "x"})
    replies = cohort.send_and_receive(protocol.HELLO, dict.fromkeys(NAMES, request), value_of)
    cohort.require_min_replies(minimum, len(replies), protocol.HELLO)
    return replies


def value_of(_: str, content: RecordDict) -> float:
    return protocol.numbers_of(content)["value"]


def test_replies_come_in_node_order_whatever_the_order_of_arrival(
    exchanges_with: Callable[..., Cohort],
) -> None:
    assert list(ask(exchanges_with(number)).items()) == [("zoe", 0), ("adam", 1), ("mia", 2)]


def test_a_node_that_fails_is_a_dropout_and_is_logged(
    exchanges_with: Callable[..., Cohort],
) -> None:
    cohort = exchanges_with(lambda i: Error(2, "no memory") if i == 1 else number(i))
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert cohort.dropouts == {"adam": 1}
    assert "dropout: adam: no memory" in (cohort.recorder.directory / "events.log").read_text()


def test_an_error_that_comes_by_another_grid_is_counted_once(
    exchanges_with: Callable[..., Cohort],
) -> None:
    """As under Flower's own start, which takes the grid that it is given."""
    cohort = exchanges_with(lambda i: Error(2, "no memory") if i == 1 else number(i))
    requests = dict.fromkeys(NAMES, protocol.request({"run": "x"}))
    messages = cohort.messages(protocol.HELLO, requests)
    replies = list(cohort.grid.grid.send_and_receive(messages))
    for _ in range(2):
        assert dict(cohort.read(replies, protocol.HELLO, value_of)) == {"zoe": 0, "mia": 2}
    assert cohort.dropouts == {"adam": 1}
    assert "dropout: adam: no memory" in (cohort.recorder.directory / "events.log").read_text()


def test_replies_can_be_matched_to_the_messages_that_were_sent(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
) -> None:
    """Whatever became of them: repeated, failed, or never sent."""
    lost = [Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), None]
    cohort, grid = coming_and_going(
        lambda i: (lost.pop() if lost else number(i)) if i == 1 else number(i)
    )
    cohort.grid._away = {4}
    grid.away = {4}
    nodes = cohort.nodes.values()
    messages = [Message(RecordDict(), node, protocol.HELLO, ttl=77.0) for node in nodes]
    replies = cohort.grid.send_and_receive(messages)
    assert grid.lives == {77.0}
    assert [reply.has_error() for reply in replies] == [False, False, True]
    sent = [message.metadata.message_id for message in messages]
    assert len(set(sent)) == 3
    assert [reply.metadata.reply_to_message_id for reply in replies] == sent


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (RecordDict(), "no 'value' in its reply"),
        (RecordDict({"metrics": MetricRecord({"value": float("nan")})}), "must be a finite number"),
        (RecordDict({"metrics": MetricRecord({"value": [1.0, 2.0]})}), "must be a finite number"),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_dropout(
    exchanges_with: Callable[..., Cohort], nonsense: RecordDict, why: str
) -> None:
    cohort = exchanges_with(lambda i: nonsense if i == 1 else number(i))
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert why in (cohort.recorder.directory / "events.log").read_text()


def test_readers_know_whose_reply_they_read(exchanges_with: Callable[..., Cohort]) -> None:
    cohort, request = exchanges_with(number), protocol.request({"run": "x"})
    said = cohort.send_and_receive(
        protocol.HELLO, dict.fromkeys(NAMES, request), lambda name, _: name
    )
    assert said == dict(zip(NAMES, NAMES, strict=True))


@pytest.mark.parametrize("content", [None, MetricRecord({"value": 1.0}), "value"])
def test_a_reply_that_carries_no_records_is_a_dropout(
    exchanges_with: Callable[..., Cohort], content: object
) -> None:
    cohort = exchanges_with(number)
    answers = cohort.grid.grid.pull_messages

    def replaced(identifiers: Iterable[str]) -> Iterable[Message]:
        messages = list(answers(identifiers))
        for message in messages:
            if message.metadata.src_node_id == cohort.nodes["adam"]:
                message.__dict__["_content"] = content
        return messages

    cohort.grid.grid.pull_messages = replaced  # type: ignore[method-assign]
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert cohort.dropouts == {"adam": 1}


@pytest.mark.parametrize(
    "answer",
    [
        Error(2, "no\nmemory\x1b[2J\r" + "left " * 10**6),
        Error(2, "<class 'a.b.Wrong'>:<'" + "no\n" * 10**5 + "\x1b[2J'>"),
        RecordDict({"metrics": ConfigRecord({"value": "no\n" * 10**5})}),
        RecordDict({"metrics": MetricRecord({"value": [1.0] * 10**5})}),
    ],
)
def test_what_a_node_says_is_one_short_line_in_the_log(
    exchanges_with: Callable[..., Cohort], answer: RecordDict | Error
) -> None:
    cohort = exchanges_with(lambda i: answer if i == 1 else number(i))
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    log = (cohort.recorder.directory / "events.log").read_text()
    assert log.count("\n") == len(log.splitlines()) == 1
    assert log.rstrip("\n").isprintable()
    assert len(log) < 700


def test_too_few_answers_stop_the_run_and_say_why(
    exchanges_with: Callable[..., Cohort],
) -> None:
    cohort = exchanges_with(lambda i: Error(2, "no memory") if i else number(i))
    with pytest.raises(TooFewParticipants, match=r"1 participants answered.*needs 2.*no memory"):
        ask(cohort, minimum=2)


def test_a_node_that_keeps_failing_is_left_alone_until_it_is_forgiven(
    exchanges_with: Callable[..., Cohort],
) -> None:
    asked: list[int] = []

    def answer(i: int) -> RecordDict | Error:
        asked.append(i)
        return Error(2, "broken") if i == 1 else number(i)

    cohort = exchanges_with(answer)
    for _ in range(5):
        ask(cohort)
    assert asked.count(1) == 3
    cohort.reset_failures()
    ask(cohort)
    ask(cohort)
    assert asked.count(1) == 4


def test_a_late_node_is_a_dropout_and_gets_no_second_message_before_it_answers(
    exchanges_with: Callable[..., Cohort],
) -> None:
    cohort = exchanges_with(lambda i: None if i == 1 else number(i), timeout=0.1)
    grid = cohort.grid.grid
    assert isinstance(grid, ScriptedGrid)
    start = time.monotonic()
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert time.monotonic() - start < 5
    adam = cohort.nodes["adam"]
    assert grid.in_flight.count(adam) == 1
    late = Message(number(1), reply_to=_asked(grid, adam))
    grid.ready.append(late)
    grid.answer = number
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}


def _asked(grid: ScriptedGrid, node: int) -> Message:
    """Return the message that a silent node has, as its number two: it was pushed second."""
    message = Message(RecordDict(), node, "query.hello")
    message.metadata.__dict__["_message_id"] = "2"
    return message


def test_each_node_goes_at_its_own_pace(exchanges_with: Callable[..., Cohort]) -> None:
    cohort, counts = exchanges_with(number), dict.fromkeys(NAMES, 0)
    request = protocol.request({"run": "x"})

    def again(name: str, value: float) -> RecordDict | None:
        counts[name] += 1
        return request if counts[name] <= value else None

    stream = cohort.stream(protocol.LOCAL, dict.fromkeys(NAMES, request), value_of)
    for name, value in stream:
        if following := again(name, value):
            stream.send({name: following})
    assert counts == {"zoe": 1, "adam": 2, "mia": 3}


def test_bytes_are_counted_by_kind(exchanges_with: Callable[..., Cohort]) -> None:
    cohort = exchanges_with(number)
    ask(cohort)
    total = cohort.recorder.note["exchanges"][protocol.HELLO]
    assert total == {"count": 3, "bytes_sent": 3 * 4, "bytes_received": 3 * 13}


class PatientGrid(ScriptedGrid):
    """Waits by itself before it says that nothing has come."""

    waits = 3

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return nothing, late, three times."""
        if self.waits:
            self.waits -= 1
            time.sleep(2 * POLL_SECONDS)
            return []
        return super().pull_messages(message_ids)


def test_a_grid_that_waits_is_not_made_to_wait_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_server_context({})
    grid, recorder = PatientGrid(number), Recorder(tmp_path / "run", tiny(), "test")
    nodes = dict(zip(NAMES, grid.get_node_ids(), strict=True))
    slept: list[float] = []
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), real(seconds)))
    cohort = Cohort.on(grid, ClientConfig(), recorder)
    cohort.nodes = nodes
    ask(cohort)
    recorder.close("done")
    assert sum(slept) == pytest.approx(3 * 2 * POLL_SECONDS)


# ---------------------------------------------------------------- nodes that come and go


class ComingAndGoing(ScriptedGrid):
    """Nodes may be away; what each is asked is noted, by the exchange's name."""

    def __init__(self, answer: Callable[[int], RecordDict | Error | None]) -> None:
        super().__init__(answer)
        self.away: set[int] = set()
        self.named: list[tuple[int, str]] = []
        self.lives: set[float] = set()

    def get_node_ids(self) -> list[int]:
        """Return who is there."""
        return [node for node in super().get_node_ids() if node not in self.away]

    def _dispatch(self, message: Message, identifier: str) -> None:
        self.lives.add(message.metadata.ttl)
        self.named.append((message.metadata.dst_node_id - 2, message.metadata.group_id))
        super()._dispatch(message, identifier)


@pytest.fixture
def coming_and_going(
    exchanges_with: Callable[..., Cohort], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Cohort, ComingAndGoing]]:
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.REPEAT_SECONDS", 0.1)
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("pudica.strategies.core.pending.PendingRequest.busy_pause", 0.1)

    def make(
        answer: Callable[[int], RecordDict | Error | None], **client: float
    ) -> tuple[Cohort, ComingAndGoing]:
        cohort = exchanges_with(answer, **{"patience": 5.0, **client})
        grid = cohort.grid.grid = ComingAndGoing(answer)
        return cohort, grid

    return make


@pytest.mark.parametrize(
    "lost",
    [
        None,
        Error(ErrorCode.NODE_UNAVAILABLE, "away"),
        Error(ErrorCode.CLIENT_APP_CRASHED, "killed"),
        protocol.busy(),
    ],
)
def test_a_node_whose_answer_is_lost_is_asked_again_under_the_same_name(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
    lost: RecordDict | Error | None,
) -> None:
    times: list[int] = []

    def answer(i: int) -> RecordDict | Error | None:
        times.append(i)
        return lost if i == 1 and times.count(1) < 3 else number(i)

    cohort, grid = coming_and_going(answer)
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}
    assert cohort.dropouts == {}
    assert times.count(1) == 3
    assert times.count(0) == 1
    names = [{name for node, name in grid.named if node == i} for i in range(3)]
    assert all(len(each) == 1 and each != {""} for each in names)
    assert len(set.union(*names)) == 3
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}
    assert len({name for _, name in grid.named}) == 6


def test_a_node_that_was_started_anew_is_asked_again_at_once(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it was asked before it was killed, it knows nothing of."""
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.REPEAT_SECONDS", 60.0)
    times: list[int] = []

    def answer(i: int) -> RecordDict | None:
        times.append(i)
        return None if i == 1 and times.count(1) < 2 else number(i)

    def nodes() -> list[NodeInfo]:
        restarted = "later" if times.count(1) else "at first"
        return [
            NodeInfo(node_id=i, last_activated_at=restarted if i == 3 else "at first")
            for i in grid.get_node_ids()
        ]

    cohort, grid = coming_and_going(answer)
    grid.get_nodes = nodes  # type: ignore[method-assign]
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}
    assert [times.count(i) for i in range(3)] == [1, 2, 1]
    events = (cohort.recorder.directory / "events.log").read_text()
    assert f"{protocol.HELLO} asked again: adam" in events


def test_a_silent_node_is_asked_again_ten_times_within_its_time(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that can answer again near the end has the time to do so."""
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + max(1, seconds))
    )
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.time", clock)
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.REPEAT_SECONDS", 60.0)
    asked: list[float] = []
    cohort, _ = coming_and_going(
        lambda i: asked.append(now[0]) if i == 1 else number(i), timeout=1200.0
    )
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert now[0] >= 1200
    assert len(asked) >= 10
    assert max(after - before for before, after in pairwise([*asked, now[0]])) <= 125


@pytest.mark.parametrize("status", [500, 403])
def test_a_server_that_stumbles_is_asked_again(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    """What it refuses is not repeated."""
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.RETRY_SECONDS", (0.01, 0.01))
    cohort, grid = coming_and_going(number)
    whole, stumbles = grid.pull_messages, [True]

    def pull(message_ids: Iterable[str]) -> Iterable[Message]:
        if stumbles:
            stumbles.pop()
            request = httpx.Request("POST", "https://x")
            raise httpx.HTTPStatusError("x", request=request, response=httpx.Response(status))
        return whole(message_ids)

    grid.pull_messages = pull  # type: ignore[method-assign]
    if status == 403:
        with pytest.raises(httpx.HTTPStatusError):
            ask(cohort)
    else:
        assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}


def test_an_answer_that_comes_twice_counts_once(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
) -> None:
    cohort, grid = coming_and_going(lambda i: None if i == 1 else number(i))
    held: list[Message] = []

    def hand(message: Message, identifier: str) -> None:
        reply = Message(number(message.metadata.dst_node_id - 2), reply_to=message)
        if message.metadata.dst_node_id - 2 == 1:
            held.append(reply)
            grid.ready += held if len(held) == 2 else []
        else:
            grid.ready.append(reply)

    def all_at_once(message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [m for m in grid.ready if m.metadata.reply_to_message_id in wanted]
        grid.ready = [m for m in grid.ready if m not in found]
        return found

    grid._dispatch, grid.pull_messages = hand, all_at_once  # type: ignore[method-assign]
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}
    assert cohort.recorder.note["exchanges"][protocol.HELLO]["count"] == 3


def test_a_node_that_was_removed_is_not_waited_for(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Error(ErrorCode.NODE_UNAVAILABLE, "away")
    cohort, grid = coming_and_going(lambda i: away if i == 1 else number(i), patience=60)
    registry = [{"name": "x", "node": i, "fingerprint": "", "since": ""} for i in (2, 4)]
    (tmp_path / REGISTRY).write_text(json.dumps(registry))
    cohort.grid.is_removed = NodeRegistry(tmp_path).is_removed
    grid.away = {3}
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    events = (cohort.recorder.directory / "events.log").read_text()
    assert "adam: it was removed by the organiser" in events


def test_a_node_that_is_away_for_too_long_is_left_out_until_it_is_back(
    coming_and_going: Callable[..., tuple[Cohort, ComingAndGoing]],
) -> None:
    away = Error(ErrorCode.NODE_UNAVAILABLE, "away")
    cohort, grid = coming_and_going(
        lambda i: away if i == 1 and grid.away else number(i), patience=0.3
    )
    grid.away = {3}
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert cohort.dropouts == {"adam": 1}
    assert (
        "adam: away for more than 0.3 s" in (cohort.recorder.directory / "events.log").read_text()
    )
    asked = len(grid.named)
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert len(grid.named) == asked + 2
    grid.away = set()
    assert ask(cohort) == {"zoe": 0, "adam": 1, "mia": 2}


def test_in_a_simulation_nobody_is_asked_twice(exchanges_with: Callable[..., Cohort]) -> None:
    crashed = Error(ErrorCode.CLIENT_APP_CRASHED, "killed")
    cohort = exchanges_with(lambda i: crashed if i == 1 else number(i))
    grid = cohort.grid.grid = ComingAndGoing(lambda i: crashed if i == 1 else number(i))
    assert ask(cohort) == {"zoe": 0, "mia": 2}
    assert [name for _, name in grid.named] == ["", "", ""]
