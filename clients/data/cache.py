"""Decoded images as a memory-mapped array on disk, built once and shared by all processes.

An entry is a folder whose name consists of the fingerprint of the files' content, the image size
and the channels. It is written to a temporary folder and renamed, so an existing entry is always
complete. A lock lets one process decode while the others wait. The whole cache may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from pudica.clients.data.decoding import LayoutRequest, decode
from pudica.clients.data.disguised import Manifest, copy_images
from pudica.clients.data.errors import DataError
from pudica.clients.data.source import Content, Source, cache_root
from pudica.models.files import file_lock, write_atomically
from pudica.models.printable import to_nfc

FORMAT = "2"
"""Part of every fingerprint: increase it when decoding the same files gives different bytes."""

_FIELDS = ("train", "test", "class_names", "unusable", "segments", "notes")
# A file modified this recently may change again without a new time stamp.
_UNSETTLED_NS = 2_000_000_000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CachedDataset(Content):
    """One entry of the cache, with the names of its columns in NFC."""

    fingerprint: str
    images: NDArray[np.generic]  # (N, C, H, W), memory-mapped; uint8 unless they are disguised
    base: Path


def fetch_cached(source: Source, request: LayoutRequest) -> CachedDataset:
    """Return the decoded set; decode it first if it is not cached yet.

    Raises DataError if the data are broken or the cache folder is not writable.
    """
    cache = cache_root()
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        fingerprint = compute_fingerprint(source, cache / "index")
        entry = cache / f"{fingerprint[:32]}-{request.key()}"
        if not entry.is_dir():
            with file_lock(entry.with_suffix(".lock")):
                if not entry.is_dir():
                    _build_entry(source, request, entry)
    except OSError as error:
        raise DataError(
            f"cannot use the cache folder {cache}: {error}. "
            "Set PUDICA_CACHE to a folder that can be written"
        ) from error
    return _read_entry(entry, fingerprint, source.base)


def _build_entry(source: Source, request: LayoutRequest, entry: Path) -> None:
    """Decode into a new entry; called with the entry's lock held."""
    before = _compute_signature(source)
    with new_folder(entry) as folder:
        content = source.open()
        if content.disguised is None:
            found = decode(content, source.base, request, folder / "images.npy")
            content = replace(content, notes=[*content.notes, *found])
        elif request == LayoutRequest():
            copy_images(source.base, content.disguised, folder / "images.npy")
        else:
            raise DataError(
                f"{source.base} holds disguised images, which can't be resized, nor their channels "
                "changed: leave data.image_size, fit, channels and background out"
            )
        pq.write_table(content.columns, folder / "columns.parquet")
        metadata = {name: getattr(content, name) for name in _FIELDS}
        manifest = content.disguised and content.disguised.model_dump(mode="json")
        (folder / "content.json").write_text(json.dumps({**metadata, "disguised": manifest}))
        if _compute_signature(source) != before:
            raise DataError(f"the files in {source.base} changed while they were read: run again")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which gets its name once all is in it; or leave nothing.

    Whoever calls this holds a lock: what a killed process has left is removed first.
    """
    for leftover in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(leftover)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        yield part
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _read_entry(entry: Path, fingerprint: str, base: Path) -> CachedDataset:
    try:
        # A plain view: indexing the memmap subclass costs several microseconds more.
        images = np.asarray(np.load(entry / "images.npy", mmap_mode="r"))
        columns = pq.read_table(entry / "columns.parquet")
        content = json.loads((entry / "content.json").read_text())
        manifest = content.pop("disguised", None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"the cache entry {entry} is damaged: {error}. Delete it") from error
    try:
        disguised = Manifest.model_validate(manifest) if manifest else None
    except ValidationError as error:
        raise DataError(f"the cache entry {entry} is of another version: delete it") from error
    for metadata in ("class_names", "unusable"):
        content[metadata] = {to_nfc(name): kind for name, kind in content[metadata].items()}
    return CachedDataset(
        fingerprint=fingerprint,
        images=images,
        columns=columns.rename_columns([to_nfc(name) for name in columns.column_names]),
        base=base,
        disguised=disguised,
        **content,
    )


def compute_fingerprint(source: Source, index: Path) -> str:
    """Return the hash of the files' content, cached while no file changes.

    The folder ``index`` caches hashes by the files' names, sizes and times. Raises DataError if a
    file cannot be read.
    """
    signature, newest = _compute_signature(source)
    note = index / signature
    if note.is_file():
        return note.read_text()
    digest = hashlib.blake2b(f"{FORMAT}\0{source.kind}\n".encode(), digest_size=20)
    for file in source.files:
        name = os.fsencode(file.relative_to(source.base).as_posix())  # which need not be UTF-8
        digest.update(name + f"\0{_read_source_file(file, _hash_file)}\n".encode())
    if newest < time.time_ns() - _UNSETTLED_NS:
        index.mkdir(exist_ok=True)
        write_atomically(note, digest.hexdigest().encode(), mode=0o600)
    return digest.hexdigest()


def _compute_signature(source: Source) -> tuple[str, int]:
    """Return a hash of the files' names, sizes and times, and the latest time in ns."""
    digest, newest = hashlib.blake2b(source.kind.encode(), digest_size=20), 0
    for file in source.files:
        stat = _read_source_file(file, os.stat)
        times = stat.st_mtime_ns, stat.st_ctime_ns
        name = os.fsencode(file.absolute())
        digest.update(name + f"\0{FORMAT}\0{stat.st_size}\0{times}\n".encode())
        newest = max(newest, *times)
    return digest.hexdigest(), newest


def _hash_file(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()


def _read_source_file(file: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
