"""Decoded images as a memory-mapped array on disk, built once and shared by all processes.

An entry is a folder whose name consists of the fingerprint of the files' content, the image size
and the channels. It is written to a temporary folder and renamed, so an existing entry is always
complete. A lock lets one process decode while the others wait. The whole cache may be deleted at
any time.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from pudica.clients.data.decoding import decode
from pudica.clients.data.disguised import Manifest, copy_images
from pudica.clients.data.errors import DataError
from pudica.clients.data.fingerprints import compute_fingerprint, compute_signature
from pudica.clients.data.pixels import Channels
from pudica.clients.data.places import cache_root
from pudica.clients.data.source import Content, Source, describe_origin
from pudica.models.printable import to_nfc


@dataclass(frozen=True)
class CachedDataset:
    """One entry of the cache.

    Parameters
    ----------
    fingerprint : str
        Fingerprint of the content.
    images : ndarray of uint8, shape (N, C, H, W)
        Memory-mapped, read only; the training rows first, then the set's own test rows. For
        disguised images the dtype in ``disguised``.
    train, test : int
        Number of rows of each; ``test`` is 0 if the set has no test split of its own.
    columns : pyarrow.Table
        Every column that can serve as a label.
    class_names : dict
        Class names by column, where the data declare them.
    unusable : dict
        Columns that cannot serve as a label, with their types.
    segments : list
        As in :class:`~pudica.clients.data.source.Content`.
    base : Path
        The folder that holds the files.
    disguised : Manifest or None
        Describes images that are disguised on disk.
    """

    fingerprint: str
    images: NDArray[np.generic]
    train: int
    test: int
    columns: pa.Table
    class_names: dict[str, list[str]]
    unusable: dict[str, str]
    segments: list[tuple[str, int]]
    base: Path
    disguised: Manifest | None = None

    def describe_origin(self, row: int) -> str:
        """Describe which file a row comes from, and its row in that file."""
        return describe_origin(self.base, self.segments, row)


def fetch_cached(source: Source, size: int | None, channels: Channels | None) -> CachedDataset:
    """Return the decoded set; decode it first if it is not cached yet.

    Raises
    ------
    DataError
        If the data are broken or the cache folder is not writable.
    """
    with _translate_os_errors():
        cache = cache_root()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        fingerprint = compute_fingerprint(source, cache / "index")
        entry = cache / f"{fingerprint[:32]}-{size or 'own'}-{channels or 'own'}"
        if not entry.is_dir():
            with _hold_lock(entry.with_suffix(".lock")):
                if not entry.is_dir():
                    _build_entry(source, size, channels, entry)
    return _read_entry(entry, fingerprint, source.base)


@contextmanager
def _translate_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot use the cache folder {cache_root()}: {error}. "
            "Set PUDICA_CACHE to a folder that can be written"
        ) from error


@contextmanager
def _hold_lock(file: Path) -> Iterator[None]:
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        yield


def _build_entry(source: Source, size: int | None, channels: Channels | None, entry: Path) -> None:
    """Decode into a temporary folder and rename it; called with the entry's lock held."""
    for leftover in entry.parent.glob(f"{entry.name}.part-*"):
        shutil.rmtree(leftover)  # of a process that was killed: we hold the lock
    before = compute_signature(source)
    folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.part-", dir=entry.parent))
    try:
        content = source.open()
        _write_images(content, source.base, size, channels, folder / "images.npy")
        _write_columns(content, folder)
        if compute_signature(source) != before:
            raise DataError(f"the files in {source.base} changed while they were read: run again")
        folder.rename(entry)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_images(
    content: Content, base: Path, size: int | None, channels: Channels | None, file: Path
) -> None:
    if content.disguised is None:
        decode(content, base, size, channels, file)
    elif size is None and channels is None:
        copy_images(base, content.disguised, file)
    else:
        raise DataError(
            f"{base} holds disguised images, which can't be resized, nor their channels changed: "
            "leave data.image_size and data.channels out"
        )


def _write_columns(content: Content, folder: Path) -> None:
    columns = {name: pa.chunked_array(_chunks(values)) for name, values in content.columns.items()}
    pq.write_table(pa.table(columns), folder / "columns.parquet")
    metadata = {
        "train": content.train,
        "test": content.test,
        "class_names": dict(content.class_names),
        "unusable": dict(content.unusable),
        "segments": list(content.segments),
        "disguised": content.disguised,
    }
    (folder / "content.json").write_text(json.dumps(metadata))


def _parse_manifest(manifest: dict[str, object], entry: Path) -> Manifest:
    try:
        return Manifest.model_validate(manifest)
    except ValidationError as error:
        raise DataError(f"the cache entry {entry} is of another version: delete it") from error


def _chunks(values: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return values.chunks if isinstance(values, pa.ChunkedArray) else [values]


def _read_entry(entry: Path, fingerprint: str, base: Path) -> CachedDataset:
    try:
        # A plain view: indexing the memmap subclass costs several microseconds more.
        images = np.asarray(np.load(entry / "images.npy", mmap_mode="r"))
        columns = pq.read_table(entry / "columns.parquet")
        content = json.loads((entry / "content.json").read_text())
        manifest = content.pop("disguised", None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"the cache entry {entry} is damaged: {error}. Delete it") from error
    columns = columns.rename_columns([to_nfc(name) for name in columns.column_names])
    for metadata in ("class_names", "unusable"):
        content[metadata] = {to_nfc(name): kind for name, kind in content[metadata].items()}
    disguised = _parse_manifest(manifest, entry) if manifest else None
    return CachedDataset(
        fingerprint, images, columns=columns, base=base, disguised=disguised, **content
    )
