"""Disguising a data set, shard by shard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pudica.clients.data.decoding import Channels, LayoutRequest, decode_stream, open_images
from pudica.clients.data.disguised.manifest import (
    IMAGE,
    MANIFEST,
    Manifest,
    ProgressCallback,
    Shard,
    is_complete,
    parquet_bytes,
    read_manifest,
)
from pudica.clients.data.errors import DataError, join_names, validate_data_label
from pudica.clients.data.source import Content, Source, describe_origin, list_folder
from pudica.clients.shields.disguises import KeyedDisguise
from pudica.models.files import write_atomically
from pudica.models.printable import to_nfc

SHARD_BYTES = 2**26
SHARD_ROWS = 8192


class DisguiseRequest(NamedTuple):
    """What to disguise, and how."""

    source: Source
    fingerprint: str  # of the source's content
    disguise: KeyedDisguise
    labels: list[str]  # the columns to keep; empty: the default one
    size: int | None  # None keeps the images' own
    channels: Channels | None


def disguise_dataset(
    request: DisguiseRequest, out: Path, on_progress: ProgressCallback
) -> Manifest:
    """Write a data set disguised, or resume doing so; return its manifest.

    ``out`` is a new or empty folder, or one where disguising the same set was interrupted.

    Raises
    ------
    DataError
        If an image or label cannot be read, images have another shape than the key's, or ``out``
        contains something else.
    OSError
        For example if the disk is full; complete shards are kept.
    """
    content = request.source.open()
    manifest = _build_manifest(request, content)
    begun = _read_begun(out, manifest)
    remaining = [shard for shard in manifest.shards() if not is_complete(out, manifest, shard)]
    if begun and begun.complete and not remaining:
        return begun
    total = manifest.train + manifest.test
    on_progress(remaining[0].first if remaining else total, total)
    images = _decode_images(request, content, manifest, remaining)
    for shard in remaining:
        encoded = _encode_shard(request, content, manifest, shard, images)
        # Not before there is a shard to write: an unreadable set leaves nothing behind.
        write_atomically(out / MANIFEST, manifest.model_dump_json(indent=1).encode())
        write_atomically(out / shard.name, encoded)
        on_progress(shard.first + shard.rows, total)
    complete = manifest.model_copy(update={"complete": True})
    write_atomically(out / MANIFEST, complete.model_dump_json(indent=1).encode())
    return complete


def _build_manifest(request: DisguiseRequest, content: Content) -> Manifest:
    key, span = request.disguise.key, request.disguise.span
    if not content.train:
        raise DataError(f"{request.source.base} holds no images to train on")
    columns = content.columns.column_names
    labels = list(dict.fromkeys(map(to_nfc, request.labels)))
    if not labels:
        labels = ["label"] if "label" in columns else columns
        if len(labels) != 1:
            raise DataError(
                "which column is the label? Only what is named is kept; name it by --label: "
                f"{join_names(columns)}"
            )
    if missing := [name for name in labels if name not in columns]:
        raise DataError(
            f"there is no label column '{missing[0]}' in {request.source.base}; "
            f"allowed: {join_names(columns)}"
        )
    for name in labels:
        validate_data_label(name, f"{request.source.base}: the column")
    bytes_each = math.prod(key.shape) * span.storage_dtype.itemsize
    return Manifest(
        disguise=key.notation,
        key=key.fingerprint,
        shape=key.shape,
        dtype=span.storage_dtype_name,  # type: ignore[arg-type]
        low=span.low,
        high=span.high,
        kind=span.kind,
        source=key.tag(request.fingerprint),
        layout="image-folder" if request.source.kind.startswith("image-folder") else "parquet",
        labels=labels,
        class_names={n: c for n, c in content.class_names.items() if n in labels},
        train=content.train,
        test=content.test,
        rows_per_part=max(1, min(SHARD_ROWS, SHARD_BYTES // bytes_each)),
    )


def _read_begun(out: Path, manifest: Manifest) -> Manifest | None:
    """Read the manifest of an interrupted run in a folder, None if there is none."""
    out.mkdir(parents=True, exist_ok=True)
    if [path.name for path in list_folder(out)] in ([], [MANIFEST]):
        return None
    if not (out / MANIFEST).exists():
        raise DataError(f"{out} is not empty: name a new folder")
    begun = read_manifest(out)
    if begun.model_copy(update={"complete": False}) == manifest:
        return begun
    if begun.key != manifest.key:
        which = f"with the key {begun.key}; the key that is given is {manifest.key}"
    elif begun.labels != manifest.labels:
        which = f"with the labels {', '.join(begun.labels)}; wanted are "
        which += ", ".join(manifest.labels)
    elif begun.source != manifest.source:
        which = "of other images"
    else:
        which = "by another version of pudica"
    raise DataError(f"{out} holds images disguised by {begun.disguise}, {which}: name a new folder")


def _decode_images(
    request: DisguiseRequest, content: Content, manifest: Manifest, shards: Sequence[Shard]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images (C, H, W) of some shards, in order."""
    base = request.source.base
    layout, stream = open_images(content, base, LayoutRequest(request.size, request.channels))
    shape = (layout.channels, *layout.size)
    if shape != manifest.shape:
        sizes = ["x".join(map(str, each)) for each in (shape, manifest.shape)]
        raise DataError(
            f"{base} holds images of {sizes[0]}, the key {manifest.key} is for {sizes[1]}; make a "
            f"key for {sizes[0]}, or give --image-size {max(manifest.shape[1:])} "
            f"--channels {manifest.shape[0]}"
        )
    rows = [row for shard in shards for row in range(shard.first, shard.first + shard.rows)]
    wanted = set(rows)
    raw = compress(stream, (row in wanted for row in range(rows[-1] + 1)))
    for row, image in zip(rows, decode_stream(raw, layout, []), strict=True):
        if isinstance(image, DataError):
            raise DataError(f"{describe_origin(base, content.segments, row)}: {image}") from image
        yield image


def _encode_shard(
    request: DisguiseRequest,
    content: Content,
    manifest: Manifest,
    shard: Shard,
    images: Iterator[NDArray[np.uint8]],
) -> bytes:
    plain = torch.from_numpy(np.stack([*islice(images, shard.rows)]))
    released = request.disguise.protect(plain).to(request.disguise.span.storage_dtype).numpy()
    kind = pa.binary(released[0].nbytes)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(released).data)]
    columns = {IMAGE: pa.FixedSizeBinaryArray.from_buffers(kind, shard.rows, buffers)}
    for name in manifest.labels:
        columns[name] = content.columns[name].slice(shard.first, shard.rows)
    return parquet_bytes(pa.table(columns), note={"pudica": {"shape": manifest.shape}})
