"""Labels and binary attributes of images, from the columns of a data set.

An attribute is given as a binary column (``Smiling``), as one value of a column
(``race=Asian``), or as a range of whole numbers, both ends included (``age:20-39``). ``*`` stands
for every binary column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pudica.clients.data.cache import CachedDataset
from pudica.clients.data.errors import (
    DataError,
    join_names,
    validate_data_label,
    validate_data_labels,
)
from pudica.clients.data.source import describe_origin
from pudica.models.errors import suggest_name
from pudica.models.printable import quote, to_nfc

ALL_BINARY = "*"
_NOTATION = re.compile(r"(?P<column>[^=:]+)(?:=(?P<value>.+)|:(?P<low>\d+)-(?P<high>\d+))?")

Integers = NDArray[np.int64]


def encode_labels(
    stored: CachedDataset, label: str, names: Sequence[str] | None, fewest: int = 2
) -> tuple[Integers, list[str]]:
    """Return the class index of every row, (N,), and the classes' names.

    Parameters
    ----------
    label : str
        Name of the column.
    names : sequence of str or None
        Names of the classes 0, 1, 2, … where known. Otherwise the sorted distinct values are
        the classes; strings that are equal in NFC count as one class.
    fewest : int
        How many different values are needed.

    Raises
    ------
    DataError
        If the column is missing; contains nulls, negative numbers, values outside the known
        classes, or too few values; is neither integers nor strings; or if a class has an
        invalid name.
    """
    allowed = join_names(stored.columns.column_names)
    if label in stored.unusable:
        raise DataError(
            f"column '{label}' of {stored.base} holds {stored.unusable[label]}: labels must be "
            f"integers or strings. Columns that can be labels: {allowed}"
        )
    if label not in stored.columns.column_names:
        raise DataError(
            f"unknown label column '{label}' in {stored.base}."
            f"{suggest_name(label, stored.columns.column_names)} "
            f"Set data.label to one of: {allowed}"
        )
    column = _require_no_nulls(
        stored, validate_data_label(label, f"{stored.base}: the column"), "label"
    )
    if pa.types.is_boolean(column.type):
        column, names = column.cast(pa.int64()), names or ["false", "true"]
    if not pa.types.is_integer(column.type):
        labels, classes = _encode_texts(stored, label, column)
    else:
        values = column.to_numpy()
        if names is not None:
            classes = validate_data_labels(names, f"{stored.base}, column '{label}': the class")
            _check_range(stored, label, values, len(classes))
            return values.astype(np.int64), classes
        _check_range(stored, label, values, None)
        numbers, labels = np.unique(values, return_inverse=True)
        classes = [str(number) for number in numbers]
    if len(classes) < fewest:
        raise DataError(
            f"{_describe(stored, label, 0)}: every row has the label '{classes[0]}': at least 2 "
            "are needed"
        )
    return labels.astype(np.int64), classes


def _check_range(stored: CachedDataset, label: str, values: Integers, count: int | None) -> None:
    out_of_range = values < 0 if count is None else (values < 0) | (values >= count)
    if out_of_range.any():
        row = int(np.flatnonzero(out_of_range)[0])
        allowed = "0 and more" if count is None else f"0 to {count - 1}"
        raise DataError(
            f"{_describe(stored, label, row)}: label {values[row]} out of range; allowed: {allowed}"
        )


def _encode_texts(
    stored: CachedDataset, label: str, column: pa.ChunkedArray
) -> tuple[Integers, list[str]]:
    spellings = pc.unique(column)
    codes = pc.index_in(column, value_set=spellings).to_numpy()
    _, rows = np.unique(codes, return_index=True)
    names = [
        validate_data_label(_decode_text(value), f"{_describe(stored, label, int(row))}: the class")
        for value, row in zip(spellings, rows, strict=True)
    ]
    classes = sorted(set(names))
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[name] for name in names], np.int64)[codes], classes


def _decode_text(value: pa.Scalar) -> str:
    """Return a label as a string; invalid UTF-8 becomes surrogate escapes."""
    try:
        return str(value.as_py())
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes().decode(errors="surrogateescape")  # type: ignore[no-any-return]


def note_similar_names(classes: Sequence[str]) -> list[str]:
    """Return the notes on classes whose names differ in case or spaces only."""
    spelt: dict[str, list[str]] = {}
    for name in classes:
        spelt.setdefault("".join(name.split()).casefold(), []).append(name)
    return [
        f"the classes {' and '.join(map(quote, names))} differ in case or spaces only: are they "
        "one?"
        for names in spelt.values()
        if len(names) > 1
    ]


def keep_large_classes(
    stored: CachedDataset,
    labels: Integers,
    counted: Integers,
    classes: list[str],
    minimum: int,
    fewest: int,
    notes: list[str],
) -> tuple[Integers, Integers, list[str]]:
    """Leave out classes that are counted fewer times than a minimum, and note it.

    Returns the rows that are kept; the labels of all rows, numbered anew (what is left out has
    -1); and the names of the classes that are left.

    Raises DataError if fewer than ``fewest`` are.
    """
    rows = np.arange(len(labels))
    if minimum == 1:
        return rows, labels, classes
    counts = np.bincount(counted, minlength=len(classes))
    large = np.flatnonzero(counts >= minimum)
    if len(large) < fewest:
        raise DataError(
            f"{stored.base}: {len(large)} classes have {minimum} images or more, at least "
            f"{fewest} are needed; the largest has {counts.max()}"
        )
    if small := [name for name, count in zip(classes, counts, strict=True) if 0 < count < minimum]:
        notes.append(
            f"left out, with fewer than {minimum} images: {len(small)} classes "
            f"({join_names(small[:5])}{', …' if len(small) > 5 else ''})"
        )
    number = np.full(len(classes), -1)
    number[large] = np.arange(len(large))
    renumbered = number[labels]
    return rows[renumbered >= 0], renumbered, [classes[place] for place in large]


def read_attributes(
    stored: CachedDataset,
    requested: Sequence[str],
    names: Mapping[str, Sequence[str]],
    fewest: int = 2,
) -> tuple[Integers, list[str]]:
    """Return binary attributes of every image, 0 or 1 of shape (N, A), and their names.

    Parameters
    ----------
    requested : sequence of str
        Attributes in the notation above.
    names : mapping of str to sequence of str
        For each column the names of its classes 0, 1, 2, …, where known.
    fewest : int
        How many different answers are needed to each: 1 or 2.

    Raises DataError if an attribute cannot be parsed; its column is missing, contains nulls or is
    not binary; or if all images have it, or none.
    """
    written: list[str] = []
    for each in requested:
        written += _list_binary_columns(stored) if each == ALL_BINARY else [each]
    where = f"attributes: in {stored.base}: the column"
    written = [validate_data_label(name, where) for name in written]
    if repeated := {name for name in written if written.count(name) > 1}:
        raise DataError(f"attributes: {', '.join(sorted(repeated))} is named twice")
    columns = [_read_attribute(stored, name, names) for name in written]
    for name, column in zip(written, columns, strict=True):
        if column.min() == column.max() and fewest > 1:
            holds = "every image has" if column.all() else "no image has"
            raise DataError(f"attributes: {holds} '{name}' in {stored.base}; leave it out")
    return np.stack(columns, axis=1), written


def _read_attribute(
    stored: CachedDataset, written: str, names: Mapping[str, Sequence[str]]
) -> Integers:
    parts = _NOTATION.fullmatch(written)
    if parts is None:
        raise DataError(
            f"attributes: '{written}' makes no sense; allowed: COLUMN, COLUMN=VALUE, "
            f"COLUMN:LOW-HIGH, or {ALL_BINARY}"
        )
    name = parts["column"]
    if name not in stored.columns.column_names:
        columns = stored.columns.column_names
        raise DataError(
            f"attributes: there is no column '{name}' in {stored.base}."
            f"{suggest_name(name, columns)} Allowed: {join_names(columns)}"
        )
    column = _require_no_nulls(stored, name, "value")
    if parts["value"] is not None:
        return _match_value(column, name, parts["value"], names.get(name))
    if parts["low"] is not None:
        return _match_range(column, written, int(parts["low"]), int(parts["high"]))
    if not _is_binary(column):
        raise DataError(
            f"attributes: column '{written}' does not say yes or no, it holds "
            f"{_summarise_values(column)}; write '{written}=VALUE'"
            + (f" or '{written}:LOW-HIGH'" if pa.types.is_integer(column.type) else "")
        )
    return np.asarray(column.cast(pa.int64()))


def _match_value(
    column: pa.ChunkedArray, name: str, value: str, names: Sequence[str] | None
) -> Integers:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    numbers: dict[str, str] = {}
    if pa.types.is_integer(column.type):
        numbers = {to_nfc(known): str(number) for number, known in enumerate(names or ())}
        value = numbers.get(value, value)
    texts = np.asarray([to_nfc(str(each)) for each in column.to_pylist()])
    if value not in texts and value not in numbers.values():
        allowed = join_names(names) if names else _summarise_values(column)
        raise DataError(f"attributes: no image has {name}={value}; column '{name}' holds {allowed}")
    same: Integers = (texts == value).astype(np.int64)
    return same


def _match_range(column: pa.ChunkedArray, written: str, low: int, high: int) -> Integers:
    if not pa.types.is_integer(column.type):
        raise DataError(f"attributes: '{written}': the column holds {column.type}, not numbers")
    if low > high:
        raise DataError(f"attributes: '{written}': {low} is more than {high}")
    values = np.asarray(column)
    inside: Integers = ((low <= values) & (values <= high)).astype(np.int64)
    return inside


def _list_binary_columns(stored: CachedDataset) -> list[str]:
    columns = stored.columns
    found = [
        n for n in columns.column_names if not columns[n].null_count and _is_binary(columns[n])
    ]
    if not found:
        raise DataError(
            f"attributes: {ALL_BINARY}: no column of {stored.base} says yes or no; it has: "
            f"{join_names(columns.column_names)}"
        )
    return found


def _is_binary(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if pa.types.is_boolean(kind):
        return True
    return bool(pa.types.is_integer(kind) and set(pc.unique(column).to_pylist()) <= {0, 1})


def _summarise_values(column: pa.ChunkedArray) -> str:
    values = sorted(map(str, pc.unique(column).to_pylist()))
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return join_names(values[:5]) + more


def _require_no_nulls(stored: CachedDataset, name: str, what: str) -> pa.ChunkedArray:
    column = stored.columns[name]
    if column.null_count:
        row = int(np.flatnonzero(pc.is_null(column).to_numpy())[0])
        raise DataError(
            f"{_describe(stored, name, row)}: the {what} is null ({column.null_count} such): fill "
            "in or remove the row"
        )
    return column


def _describe(stored: CachedDataset, name: str, row: int) -> str:
    return f"{describe_origin(stored.base, stored.segments, row)}, column '{name}'"
