"""Encoding a label column as class indices."""

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
    stored : CachedDataset
    label : str
        Name of the column.
    names : sequence of str or None
        Names of the classes 0, 1, 2, … where known. Otherwise the sorted distinct values are
        the classes; strings that are equal in NFC count as one class.

    Returns
    -------
    labels : ndarray of int64, shape (N,)
    class_names : list of str

    Raises
    ------
    DataError
        If the column is missing; contains nulls, negative numbers, values outside the known
        classes, or only a single value; is neither integers nor strings; or if a class has an
        invalid name.
    """
    column = _require_column(stored, label)
    source = _LabelColumn(stored, label)
    _check_no_nulls(column, source)
    if pa.types.is_boolean(column.type):
        column, names = column.cast(pa.int64()), names or ["false", "true"]
    if pa.types.is_integer(column.type):
        return _encode_integers(column.to_numpy(), names and source.validate_names(names), source)
    return _encode_texts(column, source)


class _LabelColumn:
    """Describes a label column and the origin of its rows in messages."""

    def __init__(self, stored: CachedDataset, label: str) -> None:
        self._stored, self._label = stored, label

    def error(self, row: int, problem: str) -> DataError:
        return DataError(f"{self._describe(row)}: {problem}")

    def validate_name(self, text: str, row: int) -> str:
        """Validate a class name, first encountered in this row."""
        return validate_data_label(text, f"{self._describe(row)}: the class")

    def validate_names(self, texts: Sequence[str]) -> list[str]:
        """Validate the names of all classes."""
        return validate_data_labels(
            texts, f"{self._stored.base}, column '{self._label}': the class"
        )

    def _describe(self, row: int) -> str:
        return f"{self._stored.describe_origin(row)}, column '{self._label}'"


def _require_column(stored: CachedDataset, label: str) -> pa.ChunkedArray:
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


def _check_no_nulls(column: pa.ChunkedArray, source: _LabelColumn) -> None:
    if column.null_count:
        row = int(np.flatnonzero(pc.is_null(column).to_numpy())[0])
        raise source.error(
            row, f"the label is null ({column.null_count} such): fill in or remove the row"
        )


def _encode_integers(
    values: Labels, names: Sequence[str] | None, source: _LabelColumn
) -> tuple[Labels, list[str]]:
    out_of_range = values < 0 if names is None else (values < 0) | (values >= len(names))
    if out_of_range.any():
        row = int(np.flatnonzero(out_of_range)[0])
        allowed = "0 and more" if names is None else f"0 to {len(names) - 1}"
        raise source.error(row, f"label {values[row]} out of range; allowed: {allowed}")
    if names is None:
        return _encode_values(values, source)
    return values.astype(np.int64), list(names)


def _encode_texts(column: pa.ChunkedArray, source: _LabelColumn) -> tuple[Labels, list[str]]:
    spellings = pc.unique(column)
    codes = pc.index_in(column, value_set=spellings).to_numpy()
    _, rows = np.unique(codes, return_index=True)
    names = [
        source.validate_name(_decode_text(value), int(row))
        for value, row in zip(spellings, rows, strict=True)
    ]
    classes = sorted(set(names))
    _check_at_least_two(classes, source)
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[name] for name in names], np.int64)[codes], classes


def _decode_text(value: pa.Scalar) -> str:
    """Return a label as a string; invalid UTF-8 becomes surrogate escapes."""
    try:
        return str(value.as_py())
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes().decode(errors="surrogateescape")  # type: ignore[no-any-return]


def _encode_values(values: Labels, source: _LabelColumn) -> tuple[Labels, list[str]]:
    classes, labels = np.unique(values, return_inverse=True)
    _check_at_least_two(classes, source)
    return labels.astype(np.int64), [str(name) for name in classes]


def _check_at_least_two(classes: Sequence[str] | Labels, source: _LabelColumn) -> None:
    if len(classes) < 2:
        raise source.error(0, f"every row has the label '{classes[0]}': at least 2 are needed")
