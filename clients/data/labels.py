"""From a column of a data set to class indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clients.data.cache import Stored
from clients.data.errors import DataError

Labels = NDArray[np.int64]


def class_labels(
    stored: Stored, label: str, names: Sequence[str] | None
) -> tuple[Labels, list[str]]:
    """Return the class index of every row, and the classes' names.

    Parameters
    ----------
    stored : Stored
        The data set.
    label : str
        Name of the column.
    names : sequence of str or None
        The classes 0, 1, 2, … where they are known. Otherwise the sorted distinct values are
        the classes.

    Returns
    -------
    labels : ndarray of int64, shape (N,)
    class_names : list of str

    Raises
    ------
    DataError
        If there is no such column, or it holds nulls, negative numbers, values outside the
        known classes, a single value, or neither integers nor strings.
    """
    column = _column(stored, label)
    where = _Where(stored, label)
    _check_no_nulls(column, where)
    if pa.types.is_boolean(column.type):
        column, names = column.cast(pa.int64()), names or ["false", "true"]
    if pa.types.is_integer(column.type):
        return _from_integers(column.to_numpy(), names, where)
    return _from_values(np.asarray(column.to_pylist()), where)


class _Where:
    """Names a column and the origin of a row in messages."""

    def __init__(self, stored: Stored, label: str) -> None:
        self._stored, self._label = stored, label

    def error(self, row: int, problem: str) -> DataError:
        return DataError(f"{self._stored.origin(row)}, column '{self._label}': {problem}")


def _column(stored: Stored, label: str) -> pa.ChunkedArray:
    if label in stored.columns.column_names:
        return stored.columns[label]
    allowed = ", ".join(stored.columns.column_names) or "none"
    if label in stored.unusable:
        raise DataError(
            f"column '{label}' of {stored.base} holds {stored.unusable[label]}: labels must be "
            f"integers or strings. Columns that can be labels: {allowed}"
        )
    raise DataError(
        f"unknown label column '{label}' in {stored.base}. Set data.label to one of: {allowed}"
    )


def _check_no_nulls(column: pa.ChunkedArray, where: _Where) -> None:
    if column.null_count:
        row = int(np.flatnonzero(pc.is_null(column).to_numpy())[0])
        raise where.error(
            row, f"the label is null ({column.null_count} such): fill in or remove the row"
        )


def _from_integers(
    values: Labels, names: Sequence[str] | None, where: _Where
) -> tuple[Labels, list[str]]:
    wrong = values < 0 if names is None else (values < 0) | (values >= len(names))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        allowed = "0 and more" if names is None else f"0 to {len(names) - 1}"
        raise where.error(row, f"label {values[row]} out of range; allowed: {allowed}")
    if names is None:
        return _from_values(values, where)
    return values.astype(np.int64), list(names)


def _from_values(values: np.ndarray, where: _Where) -> tuple[Labels, list[str]]:
    classes, labels = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise where.error(0, f"every row has the label '{classes[0]}': at least 2 are needed")
    return labels.astype(np.int64), [str(name) for name in classes]
