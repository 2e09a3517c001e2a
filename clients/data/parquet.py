"""Parquet files in the Hugging Face layout: an image struct and label columns."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pudica.clients.data.classes import is_list, label_kind, match_classes, to_labels
from pudica.clients.data.errors import DataError, join_names, validate_data_labels
from pudica.clients.data.source import (
    Content,
    DataLocation,
    RawImage,
    Source,
    list_folder,
    walk_files,
)
from pudica.clients.data.split_names import (
    ADVICE,
    BY_NAME,
    KEYWORDS,
    SPLITS,
    SplitRules,
    are_shards,
    assign_splits,
)
from pudica.models.printable import quote, to_nfc

BATCH_ROWS = 256
"""Rows per batch: bounds the memory needed for decoding."""

ARRAYS = ("Array2D", "Array3D")
SUFFIXES = (".parquet", ".parq", ".pq")


def locate_parquet(location: DataLocation, folders: Sequence[str]) -> Path | None:
    """Return the first of ``folders`` that contains parquet files, or the given parquet file."""
    for path in location.candidates(*folders):
        if path.is_file() or (path.is_dir() and any(_list_files(path))):
            return path
    return None


def scan_parquet(path: Path, rules: SplitRules = BY_NAME) -> Source:
    """Return a parquet file, or a folder of them, as a source.

    Parameters
    ----------
    path : Path
        One file; or a folder of files whose names, or folders, speak of splits (validation joins
        the training pool), or of the pieces of one table, which form one pool.

    Raises DataError if there is no parquet file, or it is not plain which split a file is of.
    """
    if path.is_file():
        return _build_source(path.parent, [path], 1, [])
    files = _list_files(path)
    if not files:
        raise DataError(f"{path} holds no *.parquet file")
    by_name = {_name_of(file, path): file for file in files}
    is_whole = partial(_are_one_pool, path, by_name, rules.pooled)
    splits = assign_splits(by_name, rules, path, is_whole)
    if splits is None:
        return _build_source(path, files, len(files), [])
    paths, note = splits
    ordered = [file for split in SPLITS for file in paths[split]]
    return _build_source(path, ordered, len(ordered) - len(paths["test"]), [note])


def _build_source(base: Path, files: Sequence[Path], train: int, notes: Sequence[str]) -> Source:
    opener = partial(_open_content, base, files, train)
    return Source(f"parquet:{train}", base, tuple(files), opener, notes)


def _list_files(folder: Path) -> list[Path]:
    """List a folder's parquet files, or else those below it, as in repositories of the Hub."""
    found = [path for path in list_folder(folder) if _is_parquet(path)]
    return found or [path for path in walk_files(folder) if _is_parquet(path)]


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _name_of(file: Path, folder: Path) -> str:
    """Return a file's name within a folder, without its suffix."""
    return file.relative_to(folder).with_suffix("").as_posix()


def _are_one_pool(
    folder: Path, names: Collection[str], pooled: bool, named: Collection[str]
) -> bool:
    """Tell whether files, none of them named like a split, are one pool.

    Raises DataError where that is not plain.
    """
    if not named and (pooled or are_shards(names)):
        return True
    if strange := [name for name in names if name not in named]:
        raise DataError(
            f"{folder}: which split do {join_names(strange)} belong to? Allowed are names "
            f"with {', '.join(KEYWORDS)}; or {ADVICE}"
        )
    return False


def _open_content(base: Path, files: Sequence[Path], train: int) -> Content:
    schemas = [_read_schema(file) for file in files]
    image = _find_image_column(files[0], schemas[0])
    others = {column.name: column.type for column in schemas[0] if column.name != image}
    _check_columns(files, schemas, [image])
    usable = [name for name in others if _is_label(files[0], schemas[0].field(name))]
    _check_columns(files, schemas, usable)
    tables = [
        _read_labels(file, schema, usable) for file, schema in zip(files, schemas, strict=True)
    ]
    _check_same_kinds(files, tables)
    tables, class_names = match_classes(files, tables, [*map(_read_class_names, files, schemas)])
    rows = [pq.read_metadata(file).num_rows for file in files]
    names = [file.relative_to(base).as_posix() for file in files]
    return Content(
        train=sum(rows[:train]),
        test=sum(rows[train:]),
        columns=pa.concat_tables(tables) if usable else pa.table({}),
        segments=list(zip(names, rows, strict=True)),
        images=_stream_images(files, image),
        class_names=class_names,
        unusable={name: str(kind) for name, kind in others.items() if name not in usable},
    )


def _read_schema(file: Path) -> pa.Schema:
    """Read a file's schema, with column names in NFC."""
    with _translate_read_errors(file):
        stored = pq.read_schema(file)
        names = [to_nfc(name) for name in stored.names]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{file} has two columns called {quote(duplicate)}: rename one of them")
    fields = [field.with_name(name) for field, name in zip(stored, names, strict=True)]
    return pa.schema(fields, stored.metadata)


def _stored_names(file: Path, columns: Sequence[str]) -> list[str]:
    """Return column names as spelt in the file."""
    stored = {to_nfc(name): name for name in pq.read_schema(file).names}
    return [stored[name] for name in columns]


def _read_labels(file: Path, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Read columns of labels as whole numbers, strings or booleans."""
    with _translate_read_errors(file):
        table = pq.read_table(file, columns=_stored_names(file, columns))
    read: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(columns, table.columns, strict=True):
        try:
            read[name] = to_labels(column)
        except (pa.ArrowException, ValueError) as error:
            kind = schema.field(name).type
            raise DataError(
                f"{file}, column {quote(name)}, of {kind}, can't be read as labels: {error}"
            ) from error
    return pa.table(read)


@contextmanager
def _translate_read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a parquet file: {error}") from error


def _parse_features(file: Path, schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the Hugging Face features in the schema's metadata, if any."""
    stored = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        info = json.loads(stored).get("info") or {}
        features = (info.get("features") or {}).items()
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file}: its Hugging Face features can't be read: {error}") from error
    return {to_nfc(name): kind for name, kind in features if isinstance(kind, dict)}


def _find_image_column(file: Path, schema: pa.Schema) -> str:
    features = _parse_features(file, schema).items()
    declared = {name for name, kind in features if kind.get("_type") in ("Image", *ARRAYS)}
    found = [c.name for c in schema if c.name in declared or _is_image_type(c.type)]
    if len(found) == 1 or "image" in found:
        return "image" if "image" in found else str(found[0])
    if found:
        raise DataError(
            f"{file} has several image columns, {join_names(found)}: call the one that is meant "
            "'image', or leave the others out"
        )
    raise DataError(
        f"{file} has no image column (a struct of bytes and path, binary, or rows of uint8); "
        f"it has: {join_names(schema.names)}"
    )


def _is_image_type(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    if is_list(kind) and is_list(kind.value_type):
        rows = kind.value_type.value_type
        return bool(types.is_uint8(rows.value_type if is_list(rows) else rows))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_label(file: Path, field: pa.Field) -> bool:
    """Tell whether a column may hold labels; of lists and fractions, by its first rows."""
    kind = field.type
    if label_kind(kind) is not None:
        return True
    if not is_list(kind) and not pa.types.is_floating(kind):
        return False
    with _translate_read_errors(file), pq.ParquetFile(file) as reader:
        first = next(
            reader.iter_batches(BATCH_ROWS, columns=_stored_names(file, [field.name])), None
        )
    try:
        return first is not None and bool(to_labels(pa.chunked_array([first.column(0)])))
    except (pa.ArrowException, ValueError):
        return False


def _check_columns(
    files: Sequence[Path], schemas: Sequence[pa.Schema], columns: Sequence[str]
) -> None:
    for file, schema in zip(files, schemas, strict=True):
        if missing := [name for name in columns if name not in schema.names]:
            raise DataError(
                f"{file} lacks the columns {join_names(missing)} that {files[0]} has; "
                f"it has: {join_names(schema.names)}"
            )


def _check_same_kinds(files: Sequence[Path], tables: Sequence[pa.Table]) -> None:
    for file, table in zip(files, tables, strict=True):
        for name in table.column_names:
            ours, theirs = (each.schema.field(name).type for each in (tables[0], table))
            if ours != theirs:
                raise DataError(f"column '{name}' holds {ours} in {files[0]}, {theirs} in {file}")


def _read_class_names(file: Path, schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes 0, 1, 2, … that a file declares, by column."""
    classes: dict[str, list[str]] = {}
    for name, kind in _parse_features(file, schema).items():
        given = kind.get("names")
        if kind.get("_type") != "ClassLabel" or given is None:
            continue
        where = f"{file}, column {quote(name)}: the class"
        if not isinstance(given, list):
            raise DataError(f"{where} names must be a list, are {type(given).__name__}")
        classes[name] = validate_data_labels([*map(str, given)], where)
    return classes


def _stream_images(files: Sequence[Path], column: str) -> Iterator[RawImage | None]:
    for file in files:
        with _translate_read_errors(file), pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(BATCH_ROWS, columns=_stored_names(file, [column])):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                if is_list(images.type):
                    yield from map(_to_array, images.to_pylist())
                else:
                    yield from images.to_pylist()


def _to_array(rows: list[Any] | None) -> RawImage | None:
    """Return an image that is stored as rows of pixels; what is none, as bytes that no image is."""
    try:
        return None if rows is None else np.asarray(rows, np.uint8)
    except (ValueError, OverflowError, TypeError):
        return b""
