"""Disguising a data set, file by file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pudica.clients.data.decoding import decode_stream
from pudica.clients.data.disguised.manifest import (
    IMAGE,
    MANIFEST,
    Manifest,
    ProgressCallback,
    Shard,
    parquet_bytes,
    read_manifest,
)
from pudica.clients.data.disguised.reading import is_complete
from pudica.clients.data.errors import DataError
from pudica.clients.data.naming import join_names, validate_data_label
from pudica.clients.data.pixels import Channels, infer_layout
from pudica.clients.data.places import list_folder
from pudica.clients.data.source import Content, RawImage, Source, describe_origin
from pudica.clients.shields.disguises import Disguise
from pudica.models.files import write_atomically
from pudica.models.printable import to_nfc

PART_BYTES = 2**26
PART_ROWS = 8192


class DisguiseRequest(NamedTuple):
    """What is to be disguised, and how.

    Attributes
    ----------
    source : Source
    fingerprint : str
        Of the source's content.
    disguise : Disguise
    labels : list of str
        Columns to keep; empty: the usual one.
    size, channels : int or None
        Resize images and drop colours; None: as they are.
    """

    source: Source
    fingerprint: str
    disguise: Disguise
    labels: list[str]
    size: int | None
    channels: Channels | None


def disguise_dataset(request: DisguiseRequest, out: Path, on_progress: ProgressCallback) -> Manifest:
    """Write a data set disguised, or go on with it.

    Parameters
    ----------
    out : Path
        A new or empty folder, or one in which the same was begun.
    told : callable

    Raises
    ------
    DataError
        An image or label that can't be had, images of another shape than the key's, a folder
        that holds something else.
    OSError
        The disk is full, for example; what is whole stays.
    """
    content = request.source.open()
    manifest = _manifest(request, content)
    begun = _begun(out, manifest)
    waiting = [shard for shard in manifest.shards() if not is_complete(out, manifest, shard)]
    if begun and begun.complete and not waiting:
        return begun
    total = manifest.train + manifest.test
    on_progress(waiting[0].first if waiting else total, total)
    images = _decoded(request, content, manifest, waiting)
    for shard in waiting:
        encoded = _encoded(request, content, manifest, shard, images)
        # Not before there is a part to write: a set that can't be read leaves nothing behind.
        write_atomically(out / MANIFEST, _written(manifest))
        write_atomically(out / shard.name, encoded)
        on_progress(shard.first + shard.rows, total)
    whole = manifest.model_copy(update={"complete": True})
    write_atomically(out / MANIFEST, _written(whole))
    return whole


def _manifest(request: DisguiseRequest, content: Content) -> Manifest:
    disguise = request.disguise
    key, span = disguise.key, disguise.span
    labels = list(dict.fromkeys(map(to_nfc, request.labels))) or _usual_labels(content)
    if missing := [name for name in labels if name not in content.columns]:
        raise DataError(
            f"there is no label column '{missing[0]}' in {request.source.base}; "
            f"allowed: {join_names(content.columns)}"
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
        rows_per_part=max(1, min(PART_ROWS, PART_BYTES // bytes_each)),
    )


def _usual_labels(content: Content) -> list[str]:
    columns = list(content.columns)
    if "label" in columns or len(columns) == 1:
        return ["label"] if "label" in columns else columns
    raise DataError(
        f"which column is the label? Only what is named is kept; name it by --label: "
        f"{join_names(columns)}"
    )


def _begun(out: Path, manifest: Manifest) -> Manifest | None:
    """Return the manifest of what was begun in a folder, None if there is nothing yet."""
    out.mkdir(parents=True, exist_ok=True)
    if [path.name for path in list_folder(out)] in ([], [MANIFEST]):
        return None
    if not (out / MANIFEST).exists():
        raise DataError(f"{out} is not empty: name a new folder")
    begun = read_manifest(out)
    if begun.model_copy(update={"complete": False}) != manifest:
        raise DataError(
            f"{out} holds images disguised by {begun.disguise}, {_differences(begun, manifest)}: "
            "name a new folder"
        )
    return begun


def _differences(begun: Manifest, wanted: Manifest) -> str:
    """Say what was another when a folder was begun."""
    if begun.key != wanted.key:
        return f"with the key {begun.key}; the key that is given is {wanted.key}"
    if begun.labels != wanted.labels:
        return f"with the labels {', '.join(begun.labels)}; wanted are {', '.join(wanted.labels)}"
    if begun.source != wanted.source:
        return "of other images"
    return "by another version of pudica"


def _decoded(
    request: DisguiseRequest, content: Content, manifest: Manifest, shards: Sequence[Shard]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images (C, H, W) of some parts, in order."""
    stream, base = iter(content.images), request.source.base
    first = next(stream, None)
    if first is None and not manifest.train:
        raise DataError(f"{base} holds no images")
    try:
        layout = infer_layout(first, request.size, request.channels)
    except DataError as error:
        raise DataError(f"{describe_origin(base, content.segments, 0)}: {error}") from error
    shape = (layout.channels, layout.size, layout.size)
    if shape != manifest.shape:
        sizes = ["x".join(map(str, each)) for each in (shape, manifest.shape)]
        raise DataError(
            f"{base} holds images of {sizes[0]}, the key {manifest.key} is for {sizes[1]}; make a "
            f"key for {sizes[0]}, or give --image-size {manifest.shape[1]} "
            f"--channels {manifest.shape[0]}"
        )

    rows = chain.from_iterable(range(shard.first, shard.first + shard.rows) for shard in shards)
    raw = _select_rows(chain([first], stream), shards)
    for row, image in zip(rows, decode_stream(raw, layout), strict=True):
        if isinstance(image, DataError):
            raise DataError(f"{describe_origin(base, content.segments, row)}: {image}") from image
        yield image


def _select_rows(
    stream: Iterable[RawImage | None], shards: Sequence[Shard]
) -> Iterator[RawImage | None]:
    iterator, place = iter(stream), 0
    for shard in shards:
        yield from islice(iterator, shard.first - place, shard.first - place + shard.rows)
        place = shard.first + shard.rows


def _encoded(
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


def _written(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
