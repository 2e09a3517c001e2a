"""Restoring a disguised data set, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from pudica.clients.data.disguised.manifest import (
    IMAGE,
    Manifest,
    ProgressCallback,
    Shard,
    parquet_bytes,
    read_manifest,
    read_shards,
    scan_disguised,
)
from pudica.clients.data.errors import DataError, validate_data_label
from pudica.clients.data.source import Content, list_folder
from pudica.clients.shields.disguises import KeyedDisguise, require_invertible
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.printable import quote

MARKER = ".restoring"
LONGEST_NAME = 255


def restore_dataset(
    folder: Path, disguise: KeyedDisguise, out: Path, on_progress: ProgressCallback
) -> Manifest:
    """Restore a disguised set, pixel by pixel, or resume doing so; return its manifest.

    Image folders become image folders of PNG files, numbered because file names are not kept;
    parquet files become parquet files of PNG images.

    ``out`` is a new or empty folder, or one where restoring the same set was interrupted.

    Raises DataError, RequestError if the key is wrong, the disguise is lossy, or ``out`` contains
    something else.
    """
    content = scan_disguised(folder).open()
    manifest = read_manifest(folder)
    require_invertible(disguise.key.steps)
    if disguise.key.fingerprint != manifest.key:
        raise RequestError(
            f"{folder} was disguised with the key {manifest.key}; the key that is given is "
            f"{disguise.key.fingerprint}"
        )
    if manifest.layout == "image-folder":
        _check_names(folder, content.columns[manifest.labels[0]].unique().to_pylist())
    marker, mark = out / MARKER, f"{manifest.source} {manifest.key}"
    out.mkdir(parents=True, exist_ok=True)
    if list_folder(out) and (not marker.exists() or marker.read_text() != mark):
        raise DataError(f"{out} is not empty: name a new folder")
    write_atomically(marker, mark.encode())
    write = _write_table if manifest.layout == "parquet" else _write_files
    remaining = [
        shard
        for shard in manifest.shards()
        if not _last_file(out, manifest, content, shard).exists()
    ]
    total = manifest.train + manifest.test
    on_progress(remaining[0].first if remaining else total, total)
    for shard, images in read_shards(folder, manifest, remaining):
        plain = disguise.restore(torch.from_numpy(images.copy()).to(disguise.span.dtype)).numpy()
        write(out, manifest, content, shard, plain)
        on_progress(shard.first + shard.rows, total)
    marker.unlink()
    return manifest


def _check_names(folder: Path, labels: Sequence[object]) -> None:
    """Refuse labels that are not plain folder names: the set may come from anybody."""
    for label in map(str, labels):
        validate_data_label(label, f"{folder}: a label is no name of a class folder:")
        is_path = label in (".", "..") or Path(label).name != label
        if is_path or len(label.encode()) > LONGEST_NAME:
            raise DataError(f"{folder}: the label {quote(label)} is no name of a class folder")


def _last_file(out: Path, manifest: Manifest, content: Content, shard: Shard) -> Path:
    """Return the file of a shard that is written last."""
    if manifest.layout == "parquet":
        return out / shard.name
    return _image_path(out, manifest, content, shard, shard.rows - 1)


def _image_path(out: Path, manifest: Manifest, content: Content, shard: Shard, row: int) -> Path:
    label = str(content.columns[manifest.labels[0]][shard.first + row].as_py())
    base = out / shard.split if manifest.test else out
    return base / label / f"{shard.first + row:07d}.png"


def _write_files(
    out: Path, manifest: Manifest, content: Content, shard: Shard, images: NDArray[np.uint8]
) -> None:
    for row, image in enumerate(images):
        file = _image_path(out, manifest, content, shard, row)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, _encode_png(image))


def _write_table(
    out: Path, manifest: Manifest, content: Content, shard: Shard, images: NDArray[np.uint8]
) -> None:
    encoded = [{"bytes": _encode_png(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {IMAGE: pa.array(encoded, kind)}
    features: dict[str, dict[str, object]] = {IMAGE: {"_type": "Image"}}
    for name in manifest.labels:
        columns[name] = content.columns[name].slice(shard.first, shard.rows)
        if name in manifest.class_names:
            features[name] = {"names": manifest.class_names[name], "_type": "ClassLabel"}
    table = parquet_bytes(pa.table(columns), {"huggingface": {"info": {"features": features}}})
    write_atomically(out / shard.name, table)


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
