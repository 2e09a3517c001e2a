"""Parquet files in the Hugging Face layout: an image struct and label columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pudica.clients.data.errors import DataError, join_names, validate_data_labels
from pudica.clients.data.folders import SPLITS
from pudica.clients.data.source import Content, DataLocation, RawImage, Source, list_folder
from pudica.models.printable import quote, to_nfc

BATCH_ROWS = 256
"""Rows per batch: bounds the memory needed for decoding."""

_SPLIT_NAME = re.compile(rf"^({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?:[-_.].*)?$")


def locate_parquet(location: DataLocation, folders: Sequence[str]) -> Path | None:
    """Return the first of ``folders`` that contains parquet files, or the given parquet file."""
    for path in location.candidates(*folders):
        if path.is_file() or (path.is_dir() and any(_list_files(path))):
            return path
    return None


def scan_parquet(path: Path) -> Source:
    """Return a parquet file, or a folder of them, as a source.

    Parameters
    ----------
    path : Path
        One file; or a folder with ``train*.parquet`` and ``test*.parquet`` (``validation*``
        joins the training pool), or with other names, which form one pool.

    Raises DataError if there is no parquet file, or the splits cannot be told from the files'
    names.
    """
    parts = {"train": [path], "test": []} if path.is_file() else _assign_splits(path)
    base = path.parent if path.is_file() else path
    files = (*parts["train"], *parts["test"])
    return Source("parquet", base, files, partial(_open_content, base, files, len(parts["train"])))


def _list_files(folder: Path) -> list[Path]:
    """List a folder's parquet files; repositories of the Hugging Face Hub keep them in ``data``."""
    found = [path for path in list_folder(folder) if path.suffix == ".parquet"]
    return found or (_list_files(folder / "data") if (folder / "data").is_dir() else [])


def _assign_splits(folder: Path) -> dict[str, list[Path]]:
    files = _list_files(folder)
    if not files:
        raise DataError(f"{folder} holds no *.parquet file")
    splits = {path: _SPLIT_NAME.match(path.stem) for path in files}
    if not any(splits.values()):
        return {"train": files, "test": []}
    if strange := [path.name for path, match in splits.items() if match is None]:
        raise DataError(
            f"{folder}: which split do {join_names(strange)} belong to? Allowed: names that "
            f"begin with {', '.join(SPLITS)}, or no such name at all (one pool)"
        )
    parts = {
        split: [path for path, match in splits.items() if match and SPLITS[match[1]] == split]
        for split in ("train", "test")
    }
    if not parts["train"]:
        raise DataError(f"{folder} has a test file but no train*.parquet")
    return parts


def _open_content(base: Path, files: Sequence[Path], train: int) -> Content:
    schemas = [_read_schema(file) for file in files]
    image = _find_image_column(files[0], schemas[0])
    others = {column.name: column.type for column in schemas[0] if column.name != image}
    usable = [name for name, kind in others.items() if _label_kind(kind)]
    _check_same_columns(files, schemas, image, usable)
    tables = [_read_table(file, usable) for file in files]
    rows = [len(table) for table in tables]
    names = [file.relative_to(base).as_posix() for file in files]
    return Content(
        train=sum(rows[:train]),
        test=sum(rows[train:]),
        columns=pa.table({name: _join_column(tables, name) for name in usable}),
        segments=list(zip(names, rows, strict=True)),
        images=_stream_images(files, image),
        class_names=_read_class_names(files, schemas),
        unusable={name: str(kind) for name, kind in others.items() if name not in usable},
    )


def _join_column(tables: Sequence[pa.Table], name: str) -> pa.ChunkedArray:
    """Join one column of all files, whose string and dictionary encodings may differ."""
    kind = tables[0][name].type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    chunks = [chunk for table in tables for chunk in table[name].cast(plain).chunks]
    return pa.chunked_array(chunks, plain)


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


def _read_table(file: Path, columns: list[str]) -> pa.Table:
    with _translate_read_errors(file):
        table = pq.read_table(file, columns=_stored_names(file, columns))
    return table.rename_columns(columns)


@contextmanager
def _translate_read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a parquet file: {error}") from error


def _parse_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the Hugging Face features in the schema's metadata, if any."""
    stored = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(stored).get("info", {}).get("features", {})
    return {to_nfc(name): kind for name, kind in features.items() if isinstance(kind, dict)}


def _find_image_column(file: Path, schema: pa.Schema) -> str:
    features = _parse_features(schema).items()
    declared = {name for name, kind in features if kind.get("_type") == "Image"}
    found = [c.name for c in schema if c.name in declared or _is_image_type(c.type)]
    if len(found) == 1 or "image" in found:
        return "image" if "image" in found else str(found[0])
    if found:
        raise DataError(
            f"{file} has several image columns, {join_names(found)}: call the one that is meant "
            "'image', or leave the others out"
        )
    raise DataError(
        f"{file} has no image column (a struct of bytes and path, or binary); "
        f"it has: {join_names(schema.names)}"
    )


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_kind(kind: pa.DataType) -> str | None:
    """Return the kind of label that a column of this type holds, or None."""
    types = pa.types
    if types.is_dictionary(kind):
        return _label_kind(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind):
        return "strings"
    if types.is_integer(kind):
        return "integers"
    return "booleans" if types.is_boolean(kind) else None


def _check_same_columns(
    files: Sequence[Path], schemas: Sequence[pa.Schema], image: str, labels: Sequence[str]
) -> None:
    for file, schema in zip(files, schemas, strict=True):
        if missing := [name for name in (image, *labels) if name not in schema.names]:
            raise DataError(
                f"{file} lacks the columns {join_names(missing)} that {files[0]} has; "
                f"it has: {join_names(schema.names)}"
            )
        for name in labels:
            ours, theirs = (each.field(name).type for each in (schemas[0], schema))
            if _label_kind(ours) != _label_kind(theirs):
                raise DataError(f"column '{name}' holds {ours} in {files[0]}, {theirs} in {file}")


def _read_class_names(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> dict[str, list[str]]:
    """Read the declared class names, which must be the same in every file."""
    declared: list[dict[str, list[str]]] = []
    for file, schema in zip(files, schemas, strict=True):
        classes = {
            name: [*map(str, kind["names"])]
            for name, kind in _parse_features(schema).items()
            if kind.get("_type") == "ClassLabel" and kind.get("names") is not None
        }
        for name, given in classes.items():
            classes[name] = validate_data_labels(given, f"{file}, column {quote(name)}: the class")
        declared.append(classes)
        for column, ours in declared[0].items():
            theirs = classes.get(column, [])
            if theirs != ours:
                raise DataError(
                    f"classes of '{column}' differ between splits: {files[0].name} declares "
                    f"{len(ours)} {ours}, {file.name} {len(theirs)} {theirs}"
                )
    return declared[0]


def _stream_images(files: Sequence[Path], column: str) -> Iterator[RawImage | None]:
    for file in files:
        with _translate_read_errors(file), pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(BATCH_ROWS, columns=_stored_names(file, [column])):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                yield from images.to_pylist()
