"""Data sets that are disguised on disk: written without loss, read as any other, undone by a key.

A set is a folder of parquet files, each with some thousand images as raw bytes and their labels,
and ``disguise.json``, which says what the bytes are. Nothing in it is secret but what the key would
undo. Files are written one after the other and are whole or not there, so writing can stop and go
on at any moment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from clients.data.decoding import allocate, decoded
from clients.data.errors import DataError
from clients.data.pixels import Channels, layout_of
from clients.data.places import Place, entries
from clients.data.source import Content, RawImage, Source, origin
from clients.shields.disguises import Disguise, Span, parsed
from models.errors import RequestError
from models.files import write_atomically

MANIFEST = "disguise.json"
IMAGE = "image"
PART_BYTES = 2**26
PART_ROWS = 8192

Told = Callable[[int, int], None]
"""Is told how many images are done, and of how many."""


class Manifest(BaseModel):
    """What ``disguise.json`` says.

    Attributes
    ----------
    disguise, key : str
        In the notation of disguises, and the key's fingerprint.
    shape : tuple of int
        Of an image: channels, height, width.
    dtype : str
        Of its values, little-endian, row by row.
    low, high, kind : int, int, str
        Where values can lie, see :class:`~clients.shields.disguises.Span`.
    source : str
        Tells what was disguised from anything else; without the key it can't be guessed. Empty
        for a disguise that has no secrets.
    layout : {"image-folder", "parquet"}
        What it was, and becomes again.
    labels : list of str
        Columns beside the image.
    class_names : dict of str to list of str
    train, test, rows_per_part : int
    complete : bool
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pudica-disguised-1"] = "pudica-disguised-1"
    disguise: str
    key: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    dtype: Literal["uint8", "int16", "int32", "int64", "float32"]
    low: int
    high: int
    kind: Literal["pixels", "integers", "numbers"]
    source: str
    layout: Literal["image-folder", "parquet"]
    labels: list[str]
    class_names: dict[str, list[str]]
    train: PositiveInt
    test: NonNegativeInt
    rows_per_part: PositiveInt
    complete: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        parsed(self.disguise)
        if self.low >= self.high or self.dtype != _type_of(self.span):
            raise ValueError(
                f"no {self.kind} of type {self.dtype} lie in {self.low} to {self.high}"
            )
        return self

    @property
    def span(self) -> Span:
        """Where values can lie."""
        return Span(self.low, self.high, self.kind)

    def parts(self) -> list[Part]:
        """Return the files of the set, in order."""
        found = []
        for split, total in (("train", self.train), ("test", self.test)):
            count = math.ceil(total / self.rows_per_part)
            for number in range(count):
                start = number * self.rows_per_part
                rows = min(self.rows_per_part, total - start)
                name = f"{split}-{number:05d}-of-{count:05d}.parquet"
                first = start if split == "train" else self.train + start
                found.append(Part(split, first, rows, name))
        return found


class Part(NamedTuple):
    """One file: its split, its first row in the whole set, how many rows, its name."""

    split: str
    first: int
    rows: int
    name: str


# ------------------------------------------------------------------------- disguising


class Request(NamedTuple):
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


def disguise_set(request: Request, out: Path, told: Told) -> Manifest:
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
    waiting = [part for part in manifest.parts() if not (out / part.name).exists()]
    if begun and begun.complete and not waiting:
        return begun
    write_atomically(out / MANIFEST, _written(manifest))
    total = manifest.train + manifest.test
    done = waiting[0].first if waiting else total
    told(done, total)
    images = _decoded(request, content, manifest, waiting)
    for part in waiting:
        write_atomically(out / part.name, _encoded(request, content, manifest, part, images))
        told(part.first + part.rows, total)
    whole = manifest.model_copy(update={"complete": True})
    write_atomically(out / MANIFEST, _written(whole))
    return whole


def _manifest(request: Request, content: Content) -> Manifest:
    disguise = request.disguise
    key, span = disguise.key, disguise.span
    labels = request.labels or _usual_labels(content)
    if missing := [name for name in labels if name not in content.columns]:
        raise DataError(
            f"{request.source.base} has no label column '{missing[0]}'; "
            f"allowed: {', '.join(content.columns) or 'none'}"
        )
    bytes_each = math.prod(key.shape) * span.on_disk.itemsize
    return Manifest(
        disguise=key.notation,
        key=key.fingerprint,
        shape=key.shape,
        dtype=_type_of(span),  # type: ignore[arg-type]
        low=span.low,
        high=span.high,
        kind=span.kind,
        source=key.tag(request.fingerprint),
        layout="parquet" if request.source.kind == "parquet" else "image-folder",
        labels=labels,
        class_names={n: c for n, c in content.class_names.items() if n in labels},
        train=content.train,
        test=content.test,
        rows_per_part=max(1, min(PART_ROWS, PART_BYTES // bytes_each)),
    )


def _type_of(span: Span) -> str:
    return str(span.on_disk).removeprefix("torch.")


def _usual_labels(content: Content) -> list[str]:
    columns = list(content.columns)
    if "label" in columns or len(columns) == 1:
        return ["label"] if "label" in columns else columns
    raise DataError(
        f"which column is the label? Only what is named is kept; name it by --label: "
        f"{', '.join(columns) or 'there are none'}"
    )


def _begun(out: Path, manifest: Manifest) -> Manifest | None:
    """Return the manifest of what was begun in a folder, None if it is empty."""
    out.mkdir(parents=True, exist_ok=True)
    if not entries(out):
        return None
    if not (out / MANIFEST).exists():
        raise DataError(f"{out} is not empty: name a new folder")
    begun = read_manifest(out)
    if begun.model_copy(update={"complete": False}) != manifest:
        raise DataError(
            f"{out} holds images disguised by {begun.disguise} with the key {begun.key}, from "
            f"other images or with other settings; wanted is {manifest.disguise} with the key "
            f"{manifest.key}: name a new folder"
        )
    return begun


def _decoded(
    request: Request, content: Content, manifest: Manifest, parts: Sequence[Part]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images (C, H, W) of some parts, in order."""
    stream, base = iter(content.images), request.source.base
    first = next(stream, None)
    if first is None and not manifest.train:
        raise DataError(f"{base} holds no images")
    try:
        layout = layout_of(first, request.size, request.channels)
    except DataError as error:
        raise DataError(f"{origin(base, content.segments, 0)}: {error}") from error
    shape = (layout.channels, layout.size, layout.size)
    if shape != manifest.shape:
        sizes = ["x".join(map(str, each)) for each in (shape, manifest.shape)]
        raise DataError(
            f"{base} holds images of {sizes[0]}, the key {manifest.key} is for {sizes[1]}; make a "
            f"key for {sizes[0]}, or give --image-size {manifest.shape[1]} "
            f"--channels {manifest.shape[0]}"
        )

    rows = chain.from_iterable(range(part.first, part.first + part.rows) for part in parts)
    raw = _of_parts(chain([first], stream), parts)
    for row, image in zip(rows, decoded(raw, layout), strict=True):
        if isinstance(image, DataError):
            raise DataError(f"{origin(base, content.segments, row)}: {image}") from image
        yield image


def _of_parts(
    stream: Iterable[RawImage | None], parts: Sequence[Part]
) -> Iterator[RawImage | None]:
    iterator, place = iter(stream), 0
    for part in parts:
        yield from islice(iterator, part.first - place, part.first - place + part.rows)
        place = part.first + part.rows


def _encoded(
    request: Request,
    content: Content,
    manifest: Manifest,
    part: Part,
    images: Iterator[NDArray[np.uint8]],
) -> bytes:
    plain = torch.from_numpy(np.stack([*islice(images, part.rows)]))
    released = request.disguise.protect(plain).to(request.disguise.span.on_disk).numpy()
    kind = pa.binary(released[0].nbytes)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(released).data)]
    columns = {IMAGE: pa.FixedSizeBinaryArray.from_buffers(kind, part.rows, buffers)}
    for name in manifest.labels:
        columns[name] = content.columns[name].slice(part.first, part.rows)
    return _parquet(pa.table(columns), note={"pudica": {"shape": manifest.shape}})


def _parquet(table: pa.Table, note: dict[str, object]) -> bytes:
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


def _written(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


# ---------------------------------------------------------------------------- reading


def read_manifest(folder: Path) -> Manifest:
    """Return what a folder's ``disguise.json`` says; raise DataError if that makes no sense."""
    file = folder / MANIFEST
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is damaged: {where}: {first['msg']}") from error


def disguised_folder(place: Place) -> Path | None:
    """Return the folder of a disguised set, if there is one."""
    return next((path for path in place.candidates(".") if (path / MANIFEST).is_file()), None)


def disguised(folder: Path) -> Source:
    """Return the source in a folder that :func:`disguise_set` wrote.

    Raises
    ------
    DataError
        If it is not complete.
    """
    manifest = read_manifest(folder)
    files = [folder / part.name for part in manifest.parts()]
    if not manifest.complete or not all(file.is_file() for file in files):
        raise DataError(f"{folder} is not complete: run `pudica disguise` again, it goes on")
    opener = partial(_open, folder, manifest)
    return Source("disguised", folder, (folder / MANIFEST, *files), opener)


def _open(folder: Path, manifest: Manifest) -> Content:
    labels = [_table(folder / part.name, manifest.labels, part.rows) for part in manifest.parts()]
    joined = pa.concat_tables(labels)
    return Content(
        train=manifest.train,
        test=manifest.test,
        columns={name: joined[name] for name in manifest.labels},
        segments=[(part.name, part.rows) for part in manifest.parts()],
        images=(),
        class_names=manifest.class_names,
        disguised=manifest.model_dump(mode="json"),
    )


def copy_images(folder: Path, note: dict[str, object], file: Path) -> None:
    """Write all images of a disguised set into a ``.npy`` file of shape (N, C, H, W).

    Parameters
    ----------
    note : dict
        The manifest, as in :class:`~clients.data.source.Content`.

    Raises
    ------
    DataError
        If a file does not hold what it should, or the array does not fit on the disk.
    """
    manifest = Manifest.model_validate(note)
    shape = (manifest.train + manifest.test, *manifest.shape)
    images = allocate(file, shape, manifest.dtype, hint="set PUDICA_CACHE")
    for part, values in stored_parts(folder, manifest, manifest.parts()):
        images[part.first : part.first + part.rows] = values
    images.flush()


def stored_parts(
    folder: Path, manifest: Manifest, parts: Sequence[Part]
) -> Iterator[tuple[Part, NDArray[np.generic]]]:
    """Yield each part with its disguised images (N, C, H, W)."""
    for part in parts:
        file = folder / part.name
        column = _table(file, [IMAGE], part.rows)[IMAGE].combine_chunks()
        size = math.prod(manifest.shape) * np.dtype(manifest.dtype).itemsize
        if column.type != pa.binary(size) or column.null_count:
            raise DataError(f"{file}: images must be {size} bytes each, are {column.type}")
        values = np.frombuffer(column.buffers()[1], manifest.dtype, offset=column.offset * size)
        images = values[: part.rows * math.prod(manifest.shape)].reshape(-1, *manifest.shape)
        if not np.isfinite(images).all():
            raise DataError(f"{file}: values that are not finite")
        whole = manifest.kind != "numbers"
        if whole and not manifest.low <= images.min() <= images.max() <= manifest.high:
            raise DataError(f"{file}: values outside {manifest.low} to {manifest.high}")
        yield part, images


def _table(file: Path, columns: list[str], rows: int) -> pa.Table:
    try:
        table = pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a parquet file: {error}") from error
    if table.column_names != columns or len(table) != rows:
        raise DataError(
            f"{file}: must have {rows} rows of {', '.join(columns)}, has {len(table)} of "
            f"{', '.join(table.column_names)}"
        )
    return table


# ----------------------------------------------------------------------- and back again

BEGUN = ".restoring"
LONGEST_NAME = 255


def restore_set(folder: Path, disguise: Disguise, out: Path, told: Told) -> int:
    """Write a disguised set as it was, pixel by pixel, or go on with it; return the images.

    Image folders become image folders of PNG files, numbered, since names are not kept; parquet
    files become parquet files of PNG images.

    Parameters
    ----------
    folder : Path
        Of the disguised set.
    out : Path
        A new or empty folder, or one in which the same was begun.

    Raises
    ------
    DataError, RequestError
        A wrong key, a disguise that loses, a folder that holds something else.
    """
    source = disguised(folder)
    manifest = read_manifest(folder)
    if disguise.key.fingerprint != manifest.key:
        raise RequestError(
            f"{folder} was disguised with the key {manifest.key}; the key that is given is "
            f"{disguise.key.fingerprint}"
        )
    content = source.open()
    if manifest.layout == "image-folder":
        _check_names(folder, content.columns[manifest.labels[0]].unique().to_pylist())
    _claim(out, f"{manifest.source} {manifest.key}")
    write = _write_table if manifest.layout == "parquet" else _write_files
    waiting = [
        part for part in manifest.parts() if not _last(out, manifest, content, part).exists()
    ]
    total = manifest.train + manifest.test
    told(waiting[0].first if waiting else total, total)
    for part, images in stored_parts(folder, manifest, waiting):
        plain = disguise.restore(torch.from_numpy(images.copy()).to(disguise.span.dtype)).numpy()
        write(out, manifest, content, part, plain)
        told(part.first + part.rows, total)
    (out / BEGUN).unlink()
    return total


def _check_names(folder: Path, labels: Sequence[object]) -> None:
    """Refuse labels that are no names of folders: a set may come from anybody."""
    for label in map(str, labels):
        wrong = label in (".", "..") or Path(label).name != label or "\0" in label
        if wrong or len(label.encode()) > LONGEST_NAME:
            raise DataError(f"{folder}: the label {label[:80]!r} is no name of a class folder")


def _claim(out: Path, what: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    note = out / BEGUN
    if entries(out) and (not note.exists() or note.read_text() != what):
        raise DataError(f"{out} is not empty: name a new folder")
    write_atomically(note, what.encode())


def _last(out: Path, manifest: Manifest, content: Content, part: Part) -> Path:
    """Return the file that is written last of a part."""
    if manifest.layout == "parquet":
        return out / part.name
    return _place(out, manifest, content, part, part.rows - 1)


def _place(out: Path, manifest: Manifest, content: Content, part: Part, row: int) -> Path:
    label = str(content.columns[manifest.labels[0]][part.first + row].as_py())
    base = out / part.split if manifest.test else out
    return base / label / f"{part.first + row:07d}.png"


def _write_files(
    out: Path, manifest: Manifest, content: Content, part: Part, images: NDArray[np.uint8]
) -> None:
    for row, image in enumerate(images):
        file = _place(out, manifest, content, part, row)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, _png(image))


def _write_table(
    out: Path, manifest: Manifest, content: Content, part: Part, images: NDArray[np.uint8]
) -> None:
    encoded = [{"bytes": _png(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {IMAGE: pa.array(encoded, kind)}
    features: dict[str, dict[str, object]] = {IMAGE: {"_type": "Image"}}
    for name in manifest.labels:
        columns[name] = content.columns[name].slice(part.first, part.rows)
        if name in manifest.class_names:
            features[name] = {"names": manifest.class_names[name], "_type": "ClassLabel"}
    table = _parquet(pa.table(columns), {"huggingface": {"info": {"features": features}}})
    write_atomically(out / part.name, table)


def _png(image: NDArray[np.uint8]) -> bytes:
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
