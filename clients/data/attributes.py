"""Binary attributes of images, such as faces, read from the columns of a data set.

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
from pudica.clients.data.errors import DataError
from pudica.clients.data.naming import join_names, validate_data_label
from pudica.models.printable import to_nfc

ALL_BINARY = "*"
_NOTATION = re.compile(r"(?P<column>[^=:]+)(?:=(?P<value>.+)|:(?P<low>\d+)-(?P<high>\d+))?")

Attributes = NDArray[np.int64]


def read_attributes(
    stored: CachedDataset, requested: Sequence[str], names: Mapping[str, Sequence[str]]
) -> tuple[Attributes, list[str]]:
    """Read binary attributes of every image from the columns of a data set.

    Parameters
    ----------
    stored : CachedDataset
    requested : sequence of str
        Attributes in the notation above.
    names : mapping of str to sequence of str
        For each column the names of its classes 0, 1, 2, …, where known.

    Returns
    -------
    attributes : ndarray of int64, shape (N, A)
        0 or 1.
    names : list of str

    Raises
    ------
    DataError
        If an attribute cannot be parsed; its column is missing, contains nulls or is not binary;
        or if all images have it, or none.
    """
    written = [
        name
        for each in requested
        for name in (_list_binary_columns(stored) if each == ALL_BINARY else [each])
    ]
    written = [
        validate_data_label(name, f"attributes: in {stored.base}: the column") for name in written
    ]
    if repeated := {name for name in written if written.count(name) > 1}:
        raise DataError(f"attributes: {', '.join(sorted(repeated))} is named twice")
    columns = [_read_attribute(stored, name, names) for name in written]
    for name, column in zip(written, columns, strict=True):
        if column.min() == column.max():
            holds = "every image has" if column.all() else "no image has"
            raise DataError(f"attributes: {holds} '{name}' in {stored.base}; leave it out")
    return np.stack(columns, axis=1), written


def _read_attribute(
    stored: CachedDataset, written: str, names: Mapping[str, Sequence[str]]
) -> Attributes:
    parts = _NOTATION.fullmatch(written)
    if parts is None:
        raise DataError(
            f"attributes: '{written}' makes no sense; allowed: COLUMN, COLUMN=VALUE, "
            f"COLUMN:LOW-HIGH, or {ALL_BINARY}"
        )
    column = _require_column(stored, parts["column"])
    if parts["value"] is not None:
        return _match_value(column, parts["column"], parts["value"], names.get(parts["column"]))
    if parts["low"] is not None:
        return _match_range(column, written, int(parts["low"]), int(parts["high"]))
    if not _is_binary(column):
        raise DataError(
            f"attributes: column '{written}' does not say yes or no, it holds "
            f"{_summarise_values(column)}; write '{written}=VALUE'"
            + (f" or '{written}:LOW-HIGH'" if pa.types.is_integer(column.type) else "")
        )
    return np.asarray(column.cast(pa.int64()))


def _require_column(stored: CachedDataset, name: str) -> pa.ChunkedArray:
    if name not in stored.columns.column_names:
        allowed = join_names(stored.columns.column_names)
        raise DataError(
            f"attributes: there is no column '{name}' in {stored.base}; have: {allowed}"
        )
    column = stored.columns[name]
    if column.null_count:
        row = int(np.flatnonzero(pc.is_null(column).to_numpy())[0])
        raise DataError(
            f"{stored.describe_origin(row)}, column '{name}': is null ({column.null_count} such): "
            "fill in or remove the row"
        )
    return column


def _match_value(
    column: pa.ChunkedArray, name: str, value: str, names: Sequence[str] | None
) -> Attributes:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_integer(column.type):
        known = {to_nfc(known): str(number) for number, known in enumerate(names or ())}
        value = known.get(value, value)
    texts = np.asarray([to_nfc(str(each)) for each in column.to_pylist()])
    if value not in texts:
        allowed = join_names(names) if names else _summarise_values(column)
        raise DataError(f"attributes: no image has {name}={value}; column '{name}' holds {allowed}")
    same: Attributes = (texts == value).astype(np.int64)
    return same


def _match_range(column: pa.ChunkedArray, written: str, low: int, high: int) -> Attributes:
    if not pa.types.is_integer(column.type):
        raise DataError(f"attributes: '{written}': the column holds {column.type}, not numbers")
    if low > high:
        raise DataError(f"attributes: '{written}': {low} is more than {high}")
    values = np.asarray(column)
    inside: Attributes = ((low <= values) & (values <= high)).astype(np.int64)
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
