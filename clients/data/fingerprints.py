"""Fingerprints: a hash of the content of a data set's files, cached between runs."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pudica.clients.data.errors import DataError
from pudica.clients.data.source import Source

#: Part of every fingerprint: increase it when decoding the same files gives different bytes.
FORMAT = "1"

# A file modified this recently may change again without a new time stamp.
_UNSETTLED_NS = 2_000_000_000

T = TypeVar("T")


def compute_fingerprint(source: Source, index: Path) -> str:
    """Return the hash of the files' content, cached while no file changes.

    Parameters
    ----------
    source : Source
        The data set.
    index : Path
        Folder that caches the hashes, keyed by the files' names, sizes and times.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    signature, newest = compute_signature(source)
    note = index / signature
    if note.is_file():
        return note.read_text()
    digest = _hash_content(source)
    if newest < time.time_ns() - _UNSETTLED_NS:
        _write_atomically(note, digest)
    return digest


def compute_signature(source: Source) -> tuple[str, int]:
    """Return a hash of the files' names, sizes and times, and the latest time in ns."""
    digest, newest = hashlib.blake2b(source.kind.encode(), digest_size=20), 0
    for file in source.files:
        stat = _read_source_file(file, os.stat)
        times = stat.st_mtime_ns, stat.st_ctime_ns
        digest.update(f"{FORMAT}\0{file.absolute()}\0{stat.st_size}\0{times}\n".encode())
        newest = max(newest, *times)
    return digest.hexdigest(), newest


def _hash_content(source: Source) -> str:
    digest = hashlib.blake2b(f"{FORMAT}\0{source.kind}\n".encode(), digest_size=20)
    for file in source.files:
        content = _read_source_file(file, _hash_file)
        digest.update(f"{source.relative_name(file)}\0{content}\n".encode())
    return digest.hexdigest()


def _hash_file(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()


def _read_source_file(file: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _write_atomically(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    os.replace(temporary, file)
