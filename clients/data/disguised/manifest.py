"""Folders of disguised images: their manifest, and reading them like any other data set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pudica.clients.data.decoding import allocate
from pudica.clients.data.errors import DataError, join_names
from pudica.clients.data.source import Content, DataLocation, Source
from pudica.clients.shields.disguises import Span, parse_notation
from pudica.models.naming import validate_labels

MANIFEST = "disguise.json"
IMAGE = "image"

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images done and the total."""


def _validate_spelling(names: list[str]) -> list[str]:
    validate_labels(names)
    return names  # not normalised: the files spell them this way


Labels = Annotated[list[str], AfterValidator(_validate_spelling)]


class Manifest(BaseModel):
    """The content of ``disguise.json``; values are little-endian, row-major."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pudica-disguised-1"] = "pudica-disguised-1"
    disguise: str  # in its notation
    key: str = Field(pattern=r"^[0-9a-f]{16}$")  # its fingerprint
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: Literal["uint8", "int16", "int32", "int64", "float32"]
    low: int
    high: int
    kind: Literal["pixels", "integers", "numbers"]
    # A keyed tag that identifies the disguised data set, unguessable without the key; empty for a
    # disguise without secrets.
    source: str
    layout: Literal["image-folder", "parquet"]  # of the original, which is restored
    labels: Labels
    class_names: dict[str, Labels]
    train: PositiveInt
    test: NonNegativeInt
    rows_per_part: PositiveInt
    complete: bool = False

    @model_validator(mode="after")
    def _validate_values(self) -> Self:
        parse_notation(self.disguise)
        if self.low >= self.high or self.dtype != self.span.storage_dtype_name:
            raise ValueError(
                f"no {self.kind} of type {self.dtype} lie in {self.low} to {self.high}"
            )
        return self

    @property
    def span(self) -> Span:
        """Range and kind of the values."""
        return Span(self.low, self.high, self.kind)

    def shards(self) -> list[Shard]:
        """List the shards of the set, in order."""
        shards = []
        for split, first, total in (("train", 0, self.train), ("test", self.train, self.test)):
            count = math.ceil(total / self.rows_per_part)
            for number in range(count):
                start = number * self.rows_per_part
                rows = min(self.rows_per_part, total - start)
                name = f"{split}-{number:05d}-of-{count:05d}.parquet"
                shards.append(Shard(split, first + start, rows, name))
        return shards


class Shard(NamedTuple):
    """One file: its split, its first row in the whole set, its number of rows, its name."""

    split: str
    first: int
    rows: int
    name: str


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's ``disguise.json``; raise DataError if it is missing or damaged."""
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is damaged: {where}: {first['msg']}") from error


def locate_disguised(location: DataLocation) -> Path | None:
    """Return the folder of a disguised set, or None."""
    return next((path for path in location.candidates(".") if (path / MANIFEST).is_file()), None)


def scan_disguised(folder: Path) -> Source:
    """Return a folder written by :func:`disguise_dataset`; raise DataError if incomplete."""
    manifest = read_manifest(folder)
    files = [folder / shard.name for shard in manifest.shards()]
    if not manifest.complete or not all(file.is_file() for file in files):
        raise DataError(f"{folder} is not complete: run `pudica disguise` again, it goes on")
    opener = partial(_open_content, folder, manifest)
    return Source("disguised", folder, (folder / MANIFEST, *files), opener)


def _open_content(folder: Path, manifest: Manifest) -> Content:
    shards = manifest.shards()
    tables = [_read_table(folder / shard.name, manifest.labels, shard.rows) for shard in shards]
    return Content(
        train=manifest.train,
        test=manifest.test,
        columns=pa.concat_tables(tables),
        segments=[(shard.name, shard.rows) for shard in shards],
        images=(),
        class_names=manifest.class_names,
        disguised=manifest,
    )


def copy_images(folder: Path, manifest: Manifest, file: Path) -> None:
    """Copy all images of a disguised set into a ``.npy`` file of shape (N, C, H, W).

    Raises DataError if a file has unexpected content, or the array does not fit on the disk.
    """
    shape = (manifest.train + manifest.test, *manifest.shape)
    images = allocate(file, shape, manifest.dtype, hint="set PUDICA_CACHE")
    for shard, values in read_shards(folder, manifest, manifest.shards()):
        images[shard.first : shard.first + shard.rows] = values
    images.flush()


def read_shards(
    folder: Path, manifest: Manifest, shards: Sequence[Shard]
) -> Iterator[tuple[Shard, NDArray[np.generic]]]:
    """Yield each shard with its disguised images (N, C, H, W)."""
    for shard in shards:
        file = folder / shard.name
        column = _read_table(file, [IMAGE], shard.rows)[IMAGE].combine_chunks()
        size = math.prod(manifest.shape) * np.dtype(manifest.dtype).itemsize
        if column.type != pa.binary(size) or column.null_count:
            raise DataError(f"{file}: images must be {size} bytes each, are {column.type}")
        values = np.frombuffer(column.buffers()[1], manifest.dtype, offset=column.offset * size)
        images = values[: shard.rows * math.prod(manifest.shape)].reshape(-1, *manifest.shape)
        if not np.isfinite(images).all():
            raise DataError(f"{file}: values that are not finite")
        bounded = manifest.kind != "numbers"
        if bounded and not manifest.low <= images.min() <= images.max() <= manifest.high:
            raise DataError(f"{file}: values outside {manifest.low} to {manifest.high}")
        yield shard, images


def is_complete(folder: Path, manifest: Manifest, shard: Shard) -> bool:
    """Return whether a shard exists and has all its rows and columns."""
    file = folder / shard.name
    try:
        metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    columns = [IMAGE, *manifest.labels]
    return bool(metadata.num_rows == shard.rows and metadata.schema.names == columns)


def _read_table(file: Path, columns: list[str], rows: int) -> pa.Table:
    try:
        table = pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a parquet file: {error}") from error
    if table.column_names != columns or len(table) != rows:
        raise DataError(
            f"{file}: must have {rows} rows of {join_names(columns)}, has {len(table)} of "
            f"{join_names(table.column_names)}"
        )
    return table


def parquet_bytes(table: pa.Table, note: dict[str, object]) -> bytes:
    """Encode a table as a parquet file, with ``note`` as JSON metadata."""
    sink = BytesIO()
    metadata = {key: json.dumps(value) for key, value in note.items()}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name != IMAGE],
        write_statistics=False,
    )
    return sink.getvalue()
