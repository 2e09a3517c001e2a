"""Nodes that answer nonsense stop nobody, and change no more than if they were gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from competition_helpers import TINY as COMPETITION
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import clients.app
from simulations.engines.inprocess import InProcessGrid
from simulations.engines.local import run_config, server_context
from strategies.app import app as server_app
from strategies.loading import load_experiment

# Central DLMT and split training of FaceMix need everybody, by design: they stop, to be resumed.
EXPERIMENTS = {
    "themis": [
        "themis-digits",
        *COMPETITION,
        "themis.steps_per_visit=2",
        "themis.cases={joint: {}, sequential: {update: sequential}, averaged: {update: averaged}}",
    ],
    "split": [
        "split-digits",
        "split.epochs=2",
        "data.limit=120",
        "split.batches_per_message=2",
        "split.cases={average: {}, handoff: {front: handoff}, private: {front: private}}",
    ],
    "dlmt": [
        "dlmt-digits",
        "data.limit=120",
        "dlmt.training.epochs=2",
        "dlmt.cases={federated: {shield: MAT(9), train: federated, local_epochs: 1}}",
    ],
    "facemix": [
        "facemix-digits",
        "data.limit=120",
        "facemix.edges=3",
        "facemix.training.epochs=1",
        "facemix.cases={mixed: {}}",
    ],
}
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


def measured(system: str, directory: Path, honest: int, replace: Answer) -> list[str]:
    """Return what a run measures in which a node answers so from its n-th message on."""
    wanted = load_experiment(EXPERIMENTS[system][0], EXPERIMENTS[system][1:])
    config = run_config(wanted, directory, "inprocess")
    grid = HostileGrid(clients.app.app, len(wanted.names()), config)
    grid.honest, grid.replace = honest, replace  # type: ignore[method-assign]
    server_app(grid, server_context(config))
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    # How often a node was asked in vain differs: one that fails is not asked for a while.
    return sorted(
        json.dumps(row) for row in rows if row["metric"] not in UNEQUAL and row["stage"] != "costs"
    )


UNEQUAL = {"dropouts", "seconds"}


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
            known[system, honest] = measured(system, place, honest, failed)
        return known[system, honest]

    return found


@pytest.mark.parametrize("system", EXPERIMENTS)
@settings(
    max_examples=25,
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
    assert measured(system, place, honest, nonsense) == absent(system, honest)
