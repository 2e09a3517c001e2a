"""Reading disguised images like any other data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pudica.clients.data.decoding import allocate
from pudica.clients.data.disguised.manifest import IMAGE, MANIFEST, Manifest, Shard, read_manifest
from pudica.clients.data.errors import DataError
from pudica.clients.data.naming import join_names
from pudica.clients.data.places import DataLocation
from pudica.clients.data.source import Content, Source


def locate_disguised(location: DataLocation) -> Path | None:
    """Return the folder of a disguised set, or None."""
    return next((path for path in location.candidates(".") if (path / MANIFEST).is_file()), None)


def scan_disguised(folder: Path) -> Source:
    """Return a folder written by :func:`disguise_dataset` as a source.

    Raises
    ------
    DataError
        If the folder is incomplete.
    """
    manifest = read_manifest(folder)
    files = [folder / shard.name for shard in manifest.shards()]
    if not manifest.complete or not all(file.is_file() for file in files):
        raise DataError(f"{folder} is not complete: run `pudica disguise` again, it goes on")
    opener = partial(_open_content, folder, manifest)
    return Source("disguised", folder, (folder / MANIFEST, *files), opener)


def _open_content(folder: Path, manifest: Manifest) -> Content:
    labels = [
        _read_table(folder / shard.name, manifest.labels, shard.rows) for shard in manifest.shards()
    ]
    joined = pa.concat_tables(labels)
    return Content(
        train=manifest.train,
        test=manifest.test,
        columns={name: joined[name] for name in manifest.labels},
        segments=[(shard.name, shard.rows) for shard in manifest.shards()],
        images=(),
        class_names=manifest.class_names,
        disguised=manifest.model_dump(mode="json"),
    )


def copy_images(folder: Path, note: dict[str, object], file: Path) -> None:
    """Copy all images of a disguised set into a ``.npy`` file of shape (N, C, H, W).

    Parameters
    ----------
    note : dict
        The manifest, as in :class:`~pudica.clients.data.source.Content`.

    Raises
    ------
    DataError
        If a file has unexpected content, or the array does not fit on the disk.
    """
    manifest = Manifest.model_validate(note)
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
