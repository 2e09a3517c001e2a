"""What is taken out of messages, and what is not taken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from pudica.clients import protocol


def saying(value: Any) -> RecordDict:
    """Return a reply with one number, whatever it is."""
    content = protocol.reply({"value": 0})
    content["metrics"].__dict__["_data"]["value"] = value
    return content


def holding(values: np.ndarray, **other: Any) -> RecordDict:
    """Return a reply with one array, which says something else of itself."""
    array = Array(values)
    for name, said in other.items():
        setattr(array, name, said)
    content = protocol.reply({}, values=np.zeros(1))
    content["arrays"]["values"] = array  # type: ignore[index]
    return content


@pytest.mark.parametrize("value", [0, 3, -2.5, 1e38])
def test_numbers_come_as_they_were_said(value: float) -> None:
    assert protocol.numbers_of(protocol.reply({"value": value})) == {"value": value}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 10**400, -(10**400), 1e39, [1.0], "1", None, True, 1j]
)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="value"):
        protocol.numbers_of(saying(value))


@pytest.mark.parametrize("value", [-1, 11, 2**63, 0.5, 3.0, float("nan"), True, [3], "3", None])
def test_what_is_no_possible_count_is_refused(value: Any) -> None:
    assert protocol.count_of(saying(10), "value", 10) == 10
    with pytest.raises(ValueError, match="a whole number 0 to 10"):
        protocol.count_of(saying(value), "value", 10)


def test_records_of_other_names_and_kinds_count_for_nothing() -> None:
    others = {"metric": MetricRecord({"value": 1}), "metrics": ConfigRecord({"value": "1"})}
    assert protocol.numbers_of(RecordDict(others)) == {}
    assert protocol.arrays_of(RecordDict(others)) == {}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4), (1, 1, 2)])
@pytest.mark.parametrize("dtype", sorted(protocol.TYPES))
def test_arrays_come_as_they_were_sent(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    content = protocol.reply({}, values=values)
    np.testing.assert_array_equal(protocol.arrays_of(content)["values"], values, strict=True)
    np.testing.assert_array_equal(
        protocol.array_of(content, "values", shape, dtype), values, strict=True
    )


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (3, 2)},
        {"shape": (0, 2**100)},
        {"shape": (0, 2**62)},
        {"shape": (2.0, 3)},
        {"shape": (-2, -3)},
        {"shape": (2**31 - 1,) * 4},
        {"shape": (1,) * 100},
        {"dtype": "int32"},
        {"dtype": ">f4"},
        {"dtype": "object"},
        {"dtype": "{'names'"},
        {"dtype": "f4,f4"},
        {"stype": "torch.tensor"},
        {"data": b""},
        {"data": Array(np.ones((2, 3), np.float32)).data + b"\0\0\0\0"},
        {"data": Array(np.ones((2, 3), ">f4")).data},
        {"data": Array(np.asfortranarray(np.ones((2, 3), np.float32))).data},
        {"data": b"\x80\x04\x95" + Array(np.ones((2, 3), np.float32)).data[3:]},
    ],
)
def test_an_array_that_does_not_hold_what_it_says_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="array"):
        protocol.arrays_of(holding(np.ones((2, 3), np.float32), **other))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e16, -1e38])
def test_values_that_would_spoil_everybodys_are_refused(value: float) -> None:
    values = np.zeros(5, np.float32)
    values[3] = value
    with pytest.raises(ValueError, match="values with NaN, infinity or absurd values"):
        protocol.array_of(protocol.reply({}, values=values), "values", (5,))


@pytest.mark.parametrize("label", [-1, 10, 2**31 - 1])
def test_labels_of_no_class_are_refused(label: int) -> None:
    labels = np.array([0, 9, label], np.int32)
    content = protocol.reply({}, labels=labels, fine=labels[:2])
    assert protocol.labels_of(content, "fine", 2, 10, "int32").tolist() == [0, 9]
    with pytest.raises(ValueError, match="a label outside 0 to 9"):
        protocol.labels_of(content, "labels", 3, 10, "int32")
