"""Disguising a data set, shard by shard."""

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
from pudica.clients.shields.disguises import KeyedDisguise
from pudica.models.files import write_atomically
from pudica.models.printable import to_nfc

SHARD_BYTES = 2**26
SHARD_ROWS = 8192


class DisguiseRequest(NamedTuple):
    """What to disguise, and how.

    Attributes
    ----------
    source : Source
    fingerprint : str
        Fingerprint of the source's content.
    disguise : KeyedDisguise
    labels : list of str
        Columns to keep; empty: the default one.
    size, channels : int or None
        Resize images and convert them; None: keep theirs.
    """

    source: Source
    fingerprint: str
    disguise: KeyedDisguise
    labels: list[str]
    size: int | None
    channels: Channels | None


def disguise_dataset(
    request: DisguiseRequest, out: Path, on_progress: ProgressCallback
) -> Manifest:
    """Write a data set disguised, or resume doing so; return its manifest.

    Parameters
    ----------
    out : Path
        A new or empty folder, or one where disguising the same set was interrupted.
    on_progress : callable

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
        write_atomically(out / MANIFEST, _serialise(manifest))
        write_atomically(out / shard.name, encoded)
        on_progress(shard.first + shard.rows, total)
    complete = manifest.model_copy(update={"complete": True})
    write_atomically(out / MANIFEST, _serialise(complete))
    return complete


def _build_manifest(request: DisguiseRequest, content: Content) -> Manifest:
    disguise = request.disguise
    key, span = disguise.key, disguise.span
    labels = list(dict.fromkeys(map(to_nfc, request.labels))) or _default_labels(content)
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
        rows_per_part=max(1, min(SHARD_ROWS, SHARD_BYTES // bytes_each)),
    )


def _default_labels(content: Content) -> list[str]:
    columns = list(content.columns)
    if "label" in columns or len(columns) == 1:
        return ["label"] if "label" in columns else columns
    raise DataError(
        f"which column is the label? Only what is named is kept; name it by --label: "
        f"{join_names(columns)}"
    )


def _read_begun(out: Path, manifest: Manifest) -> Manifest | None:
    """Read the manifest of an interrupted run in a folder, None if there is none."""
    out.mkdir(parents=True, exist_ok=True)
    if [path.name for path in list_folder(out)] in ([], [MANIFEST]):
        return None
    if not (out / MANIFEST).exists():
        raise DataError(f"{out} is not empty: name a new folder")
    begun = read_manifest(out)
    if begun.model_copy(update={"complete": False}) != manifest:
        raise DataError(
            f"{out} holds images disguised by {begun.disguise}, "
            f"{_describe_differences(begun, manifest)}: name a new folder"
        )
    return begun


def _describe_differences(begun: Manifest, wanted: Manifest) -> str:
    """Describe how an interrupted run differs from the requested one."""
    if begun.key != wanted.key:
        return f"with the key {begun.key}; the key that is given is {wanted.key}"
    if begun.labels != wanted.labels:
        return f"with the labels {', '.join(begun.labels)}; wanted are {', '.join(wanted.labels)}"
    if begun.source != wanted.source:
        return "of other images"
    return "by another version of pudica"


def _decode_images(
    request: DisguiseRequest, content: Content, manifest: Manifest, shards: Sequence[Shard]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images (C, H, W) of some shards, in order."""
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


def _serialise(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
