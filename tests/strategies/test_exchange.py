"""Exchanges: order, dropouts, late answers, minimum."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from competition_helpers import tiny
from flwr.app import Error, Message, MetricRecord, RecordDict

from clients import protocol
from simulations.engines.local import LocalGrid, server_context
from strategies.exchange import POLL_SECONDS, Exchanges, TooFewParticipants
from strategies.recorder import Recorder

NAMES = ["zoe", "adam", "mia"]


class ScriptedGrid(LocalGrid):
    """Answers with what a function of the node's number returns; None is silence."""

    def __init__(self, answer: Callable[[int], RecordDict | Error | None]) -> None:
        super().__init__(len(NAMES))
        self.answer = answer
        self.ready: list[Message] = []
        self.in_flight: list[int] = []

    def _hand(self, message: Message, identifier: str) -> None:
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
def exchanges_with(tmp_path: Path) -> Iterator[Callable[..., Exchanges]]:
    recorder = Recorder(tmp_path / "run", tiny(), "test")

    def make(
        answer: Callable[[int], RecordDict | Error | None], timeout: float | None = None
    ) -> Exchanges:
        server_context({})
        grid = ScriptedGrid(answer)
        nodes = dict(zip(NAMES, grid.get_node_ids(), strict=True))
        return Exchanges(grid, recorder, nodes, timeout)

    yield make
    recorder.close("done")


def ask(exchanges: Exchanges, minimum: int = 0) -> dict[str, float]:
    request = protocol.request({"run": "x"})
    replies = exchanges.ask(protocol.HELLO, dict.fromkeys(NAMES, request), value_of)
    exchanges.need(minimum, len(replies), protocol.HELLO)
    return replies


def value_of(content: RecordDict) -> float:
    return protocol.numbers_of(content)["value"]


def test_replies_come_in_node_order_whatever_the_order_of_arrival(
    exchanges_with: Callable[..., Exchanges],
) -> None:
    assert list(ask(exchanges_with(number)).items()) == [("zoe", 0), ("adam", 1), ("mia", 2)]


def test_a_node_that_fails_is_a_dropout_and_is_logged(
    exchanges_with: Callable[..., Exchanges],
) -> None:
    exchanges = exchanges_with(lambda i: Error(2, "no memory") if i == 1 else number(i))
    assert ask(exchanges) == {"zoe": 0, "mia": 2}
    assert exchanges.dropouts == {"adam": 1}
    assert "dropout: adam: no memory" in (exchanges.recorder.directory / "events.log").read_text()


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (RecordDict(), "no 'value' in its reply"),
        (RecordDict({"metrics": MetricRecord({"value": float("nan")})}), "must be a finite number"),
        (RecordDict({"metrics": MetricRecord({"value": [1.0, 2.0]})}), "must be a finite number"),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_dropout(
    exchanges_with: Callable[..., Exchanges], nonsense: RecordDict, why: str
) -> None:
    exchanges = exchanges_with(lambda i: nonsense if i == 1 else number(i))
    assert ask(exchanges) == {"zoe": 0, "mia": 2}
    assert why in (exchanges.recorder.directory / "events.log").read_text()


def test_too_few_answers_stop_the_run_and_say_why(
    exchanges_with: Callable[..., Exchanges],
) -> None:
    exchanges = exchanges_with(lambda i: Error(2, "no memory") if i else number(i))
    with pytest.raises(TooFewParticipants, match=r"1 participants answered.*needs 2.*no memory"):
        ask(exchanges, minimum=2)


def test_a_node_that_keeps_failing_is_left_alone_until_it_is_forgiven(
    exchanges_with: Callable[..., Exchanges],
) -> None:
    asked: list[int] = []

    def answer(i: int) -> RecordDict | Error:
        asked.append(i)
        return Error(2, "broken") if i == 1 else number(i)

    exchanges = exchanges_with(answer)
    for _ in range(5):
        ask(exchanges)
    assert asked.count(1) == 3
    exchanges.forgive()
    ask(exchanges)
    ask(exchanges)
    assert asked.count(1) == 4


def test_a_late_node_is_a_dropout_and_gets_no_second_message_before_it_answers(
    exchanges_with: Callable[..., Exchanges],
) -> None:
    exchanges = exchanges_with(lambda i: None if i == 1 else number(i), timeout=0.1)
    grid = exchanges.grid
    assert isinstance(grid, ScriptedGrid)
    start = time.monotonic()
    assert ask(exchanges) == {"zoe": 0, "mia": 2}
    assert ask(exchanges) == {"zoe": 0, "mia": 2}
    assert time.monotonic() - start < 5
    adam = exchanges.nodes["adam"]
    assert grid.in_flight.count(adam) == 1
    late = Message(number(1), reply_to=_asked(grid, adam))
    grid.ready.append(late)
    grid.answer = number
    assert ask(exchanges) == {"zoe": 0, "adam": 1, "mia": 2}


def _asked(grid: ScriptedGrid, node: int) -> Message:
    """Return the message that a silent node has, as its number two: it was pushed second."""
    message = Message(RecordDict(), node, "query.hello")
    message.metadata.__dict__["_message_id"] = "2"
    return message


def test_each_node_goes_at_its_own_pace(exchanges_with: Callable[..., Exchanges]) -> None:
    exchanges, counts = exchanges_with(number), dict.fromkeys(NAMES, 0)
    request = protocol.request({"run": "x"})

    def again(name: str, value: float) -> RecordDict | None:
        counts[name] += 1
        return request if counts[name] <= value else None

    exchanges.converse(protocol.LOCAL, dict.fromkeys(NAMES, request), value_of, again)
    assert counts == {"zoe": 1, "adam": 2, "mia": 3}


def test_bytes_are_counted_by_kind(exchanges_with: Callable[..., Exchanges]) -> None:
    exchanges = exchanges_with(number)
    ask(exchanges)
    total = exchanges.recorder.note["exchanges"][protocol.HELLO]
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
    server_context({})
    grid, recorder = PatientGrid(number), Recorder(tmp_path / "run", tiny(), "test")
    nodes = dict(zip(NAMES, grid.get_node_ids(), strict=True))
    slept: list[float] = []
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), real(seconds)))
    ask(Exchanges(grid, recorder, nodes, timeout=None))
    recorder.close("done")
    assert sum(slept) == pytest.approx(3 * 2 * POLL_SECONDS)
