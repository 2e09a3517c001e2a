"""From a column of a data set to class indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pudica.clients.data.cache import CachedDataset
from pudica.clients.data.errors import DataError
from pudica.clients.data.naming import join_names, validate_data_label, validate_data_labels

Labels = NDArray[np.int64]


def encode_labels(
    stored: CachedDataset, label: str, names: Sequence[str] | None
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
        the classes; texts that differ only in how Unicode spells them are one.

    Returns
    -------
    labels : ndarray of int64, shape (N,)
    class_names : list of str

    Raises
    ------
    DataError
        If there is no such column, or it holds nulls, negative numbers, values outside the
        known classes, a single value, or neither integers nor strings; or a class has a name
        that may not stand.
    """
    column = _column(stored, label)
    where = _Where(stored, label)
    _check_no_nulls(column, where)
    if pa.types.is_boolean(column.type):
        column, names = column.cast(pa.int64()), names or ["false", "true"]
    if pa.types.is_integer(column.type):
        return _from_integers(column.to_numpy(), names and where.named(names), where)
    return _from_texts(column, where)


class _Where:
    """Names a column and the origin of a row in messages."""

    def __init__(self, stored: CachedDataset, label: str) -> None:
        self._stored, self._label = stored, label

    def error(self, row: int, problem: str) -> DataError:
        return DataError(f"{self._at(row)}: {problem}")

    def name(self, text: str, row: int) -> str:
        """Return the name of a class, which is met in this row first."""
        return validate_data_label(text, f"{self._at(row)}: the class")

    def named(self, texts: Sequence[str]) -> list[str]:
        """Return the names of all classes."""
        return validate_data_labels(texts, f"{self._stored.base}, column '{self._label}': the class")

    def _at(self, row: int) -> str:
        return f"{self._stored.describe_origin(row)}, column '{self._label}'"


def _column(stored: CachedDataset, label: str) -> pa.ChunkedArray:
    if label in stored.columns.column_names:
        return stored.columns[validate_data_label(label, f"{stored.base}: the column")]
    allowed = join_names(stored.columns.column_names)
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


def _from_texts(column: pa.ChunkedArray, where: _Where) -> tuple[Labels, list[str]]:
    spellings = pc.unique(column)
    codes = pc.index_in(column, value_set=spellings).to_numpy()
    _, rows = np.unique(codes, return_index=True)
    names = [where.name(_text(value), int(row)) for value, row in zip(spellings, rows, strict=True)]
    classes = sorted(set(names))
    _check_several(classes, where)
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[name] for name in names], np.int64)[codes], classes


def _text(value: pa.Scalar) -> str:
    """Return a label as a text; bytes that are no UTF-8 become halves of characters."""
    try:
        return str(value.as_py())
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes().decode(errors="surrogateescape")  # type: ignore[no-any-return]


def _from_values(values: Labels, where: _Where) -> tuple[Labels, list[str]]:
    classes, labels = np.unique(values, return_inverse=True)
    _check_several(classes, where)
    return labels.astype(np.int64), [str(name) for name in classes]


def _check_several(classes: Sequence[str] | Labels, where: _Where) -> None:
    if len(classes) < 2:
        raise where.error(0, f"every row has the label '{classes[0]}': at least 2 are needed")
