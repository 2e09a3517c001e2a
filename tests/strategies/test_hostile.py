"""Nodes that answer nonsense stop nobody, and change no more than if they were gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hostile_runs import EXPERIMENTS, measured
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pudica.simulations.engines.inprocess import InProcessGrid

HOSTILE = 1

Answer = Callable[[Message], Message]


class HostileGrid(InProcessGrid):
    """One node's answers are replaced from some message on; it does its work all the same."""

    replace: Answer
    honest = 0

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if self.partition[message.metadata.dst_node_id] != HOSTILE:
            return reply
        self.honest -= 1
        return reply if self.honest >= 0 or reply.has_error() else self.replace(reply)


def disturbed(system: str, directory: Path, first: int, answer: Answer) -> list[str]:
    """Return what a run measures in which a node answers so from its n-th message on."""

    class Grid(HostileGrid):
        honest = first
        replace = staticmethod(answer)

    return measured(EXPERIMENTS[system], directory, Grid)


def failed(reply: Message) -> Message:
    error = Error(1, "RuntimeError: not today")
    return Message(error, metadata=reply.metadata)  # type: ignore[call-overload,no-any-return]


# --------------------------------------------------------------------------- nonsense


def emptied(content: RecordDict) -> None:
    content.clear()


def renamed(content: RecordDict) -> None:
    for records in (content.array_records, content.metric_records, content.config_records):
        for record in records.values():
            for key in list(record):
                record[f"x{key}"] = record.pop(key)  # type: ignore[operator, assignment]


def not_numbers(content: RecordDict) -> None:
    for record in content.metric_records.values():
        for key in list(record):
            record[key] = float("nan")
    for record in content.config_records.values():
        for key in list(record):
            record[key] = "nonsense"
    _each_array(content, lambda _: Array(np.full((2, 2), np.nan)))


def of_another_shape(content: RecordDict) -> None:
    emptied_if_no_arrays(content)
    _each_array(content, lambda a: Array(np.zeros((3, *a.shape, 2), np.float32)))


def of_no_type(content: RecordDict) -> None:
    emptied_if_no_arrays(content)
    _each_array(content, lambda a: Array("object", a.shape, a.stype, a.data))


def of_more_than_there_is(content: RecordDict) -> None:
    emptied_if_no_arrays(content)
    _each_array(content, lambda a: Array(a.dtype, (2**40, *a.shape), a.stype, a.data))


def cut_off(content: RecordDict) -> None:
    emptied_if_no_arrays(content)
    _each_array(content, lambda a: Array(a.dtype, a.shape, a.stype, a.data[:3]))


def negative(content: RecordDict) -> None:
    emptied_if_no_arrays(content)
    _each_array(content, lambda a: Array(a.dtype, (-1,), a.stype, a.data))


def of_other_records(content: RecordDict) -> None:
    content.clear()
    content["metrics"] = ConfigRecord({"a": "b"})
    content["config"] = MetricRecord({"c": 1})


def emptied_if_no_arrays(content: RecordDict) -> None:
    if not content.array_records:
        content.clear()


def _each_array(content: RecordDict, make: Callable[[Array], Array]) -> None:
    for record in content.array_records.values():
        for key in list(record):
            record[key] = make(record[key])


NONSENSE = (
    *(emptied, renamed, not_numbers, of_another_shape, of_no_type),
    *(of_more_than_there_is, cut_off, negative, of_other_records),
)


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[str]]:
    """Return what is measured where the node fails from its n-th message on; each once."""
    known: dict[tuple[str, int], list[str]] = {}

    def found(system: str, honest: int) -> list[str]:
        if (system, honest) not in known:
            place = tmp_path_factory.mktemp("absent") / "run"
            known[system, honest] = disturbed(system, place, honest, failed)
        return known[system, honest]

    return found


@pytest.mark.slow
@pytest.mark.parametrize("system", EXPERIMENTS)
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    # A run is a second; what was drawn says enough.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(honest=st.integers(0, 12), choice=st.data())
def test_nonsense_is_as_good_as_absence(
    system: str,
    absent: Callable[[str, int], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
    honest: int,
    choice: st.DataObject,
) -> None:
    def nonsense(reply: Message) -> Message:
        choice.draw(st.sampled_from(NONSENSE), label=reply.metadata.message_type)(reply.content)
        return reply

    place: Any = tmp_path_factory.mktemp("nonsense") / "run"
    assert disturbed(system, place, honest, nonsense) == absent(system, honest)
