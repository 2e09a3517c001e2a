"""Labels as stored in several files, made one column with one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pudica.clients.data.errors import DataError, join_names


def is_list(kind: pa.DataType) -> bool:
    """Tell whether values of a type are lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def label_kind(kind: pa.DataType) -> pa.DataType | None:
    """Return how labels of a type are kept: int64, string or bool; None if they are none."""
    types = pa.types
    if types.is_dictionary(kind):
        return label_kind(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_integer(kind):
        return pa.int64()
    return pa.bool_() if types.is_boolean(kind) else None


def to_labels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return labels as int64, strings or booleans.

    Whole numbers may be stored as floats, and each label as a list of one.

    Raises ValueError, or pyarrow's error, for what is not that.
    """
    kind = column.type
    if is_list(kind):
        lengths = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or lengths != {"min": 1, "max": 1}:
            raise ValueError("lists of other than one label")
        return to_labels(pc.list_flatten(column))
    if pa.types.is_floating(kind):
        kind = pa.int64()  # a safe cast, which refuses fractions
    if (wanted := label_kind(kind)) is None:
        raise ValueError(f"{kind} is no label")
    return column.cast(wanted)


def match_classes(
    files: Sequence[Path],
    tables: Sequence[pa.Table],
    declared: Sequence[Mapping[str, list[str]]],
) -> tuple[list[pa.Table], dict[str, list[str]]]:
    """Return tables whose numbers stand for the same classes in all files, and their names.

    Files may number the same classes differently: they are matched by name, and numbered as in
    the first file that has them.

    Parameters
    ----------
    declared : sequence of mapping of str to list of str
        By column, the names of the classes 0, 1, 2, … in each file.

    Raises
    ------
    DataError
        Some files name the classes of a column, and others don't; or a number has no name.
    """
    numbered = [n for n in tables[0].column_names if pa.types.is_integer(tables[0][n].type)]
    vocabulary: dict[str, list[str]] = {}
    found = list(tables)
    for name in numbered:
        lists = [own.get(name) for own in declared]
        if not any(lists):
            continue
        if unnamed := [file for file, own in zip(files, lists, strict=True) if not own]:
            named = next(file for file, own in zip(files, lists, strict=True) if own)
            raise DataError(
                f"{unnamed[0]} does not say which classes the numbers in column '{name}' stand "
                f"for, {named} does: {join_names(next(filter(None, lists)))}. Declare the classes "
                "in both, or use strings as labels"
            )
        classes = list(dict.fromkeys(label for own in lists for label in own or ()))
        vocabulary[name] = classes
        for place, (file, own) in enumerate(zip(files, lists, strict=True)):
            if own and own != classes:
                found[place] = _renumber(file, found[place], name, own, classes)
    return found, {**declared[0], **vocabulary}


def _renumber(
    file: Path, table: pa.Table, name: str, own: Sequence[str], classes: Sequence[str]
) -> pa.Table:
    """Return a table with the numbers of a file's own classes replaced by those of all."""
    column = table[name]
    values = column.fill_null(0).to_numpy()
    if outside := [v for v in np.unique(values).tolist() if not 0 <= v < len(own)]:
        row = int(np.flatnonzero(values == outside[0])[0])
        raise DataError(
            f"{file}, row {row}, column '{name}': label {outside[0]} out of range; allowed: 0 to "
            f"{len(own) - 1}"
        )
    number = np.array([classes.index(label) for label in own], np.int64)
    renumbered = pa.array(number[values], mask=np.asarray(column.is_null()))
    return table.set_column(table.column_names.index(name), name, renumbered)
