"""Where data sets lie on this machine, and the interface between their readers and the cache."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pudica.clients.data.errors import DataError
from pudica.clients.data.split_names import BY_NAME, SplitRules
from pudica.models.printable import escape_hidden, to_nfc

if TYPE_CHECKING:
    from pudica.clients.data.disguised.manifest import Manifest

LITTER = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "icon\r"),
        *("system volume information", "lost+found", "@eadir", "__pycache__"),
    )
)
"""What zips of a Mac, Windows, file servers and notebooks contain besides hidden files."""

RawImage = bytes | Path | np.ndarray
"""An image before decoding: encoded bytes, a file, or an array of shape (H, W) or (H, W, 3)."""


@dataclass(frozen=True)
class DataLocation:
    """The folder of all data sets; and the folder or file of the wanted one itself, if given."""

    root: Path
    path: Path | None = None
    rules: SplitRules = BY_NAME

    def candidates(self, *folders: str) -> list[Path]:
        """Return the paths to try: ``path`` if given, else each of ``folders`` under the root."""
        return [self.path] if self.path else [self.root / folder for folder in folders]


@dataclass(frozen=True, kw_only=True)
class Content:
    """A data set opened for reading: training rows first, then its own test split, if any."""

    train: int
    test: int = 0
    # Every column that can serve as a label (integers, strings, booleans), including nulls.
    columns: pa.Table
    # The files that the rows come from, in order, with their numbers of rows.
    segments: Sequence[tuple[str, int]]
    images: Iterable[RawImage | None]  # in the order of the rows, read lazily
    # By column, where the data declare them: the names of its classes 0, 1, 2, …
    class_names: Mapping[str, list[str]] = field(default_factory=dict)
    # Columns that cannot serve as a label, with their types.
    unusable: Mapping[str, str] = field(default_factory=dict)
    # Of images that are disguised on disk, which `disguised.copy_images` reads.
    disguised: Manifest | None = None
    # What was converted, each in a line to be shown once.
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """A data set that has been located but not read."""

    kind: str  # the reader; part of the fingerprint, since readers may differ on the same files
    base: Path  # the folder that the files' names are relative to
    files: tuple[Path, ...]  # every file that the content depends on
    open: Callable[[], Content]
    notes: Sequence[str] = ()  # what was taken for what, or left out, each in a line


def data_root(root: Path | None = None) -> Path:
    """Return ``root``, else ``PUDICA_DATA``, else ``./data``."""
    return (root or Path(os.environ.get("PUDICA_DATA") or "data")).expanduser()


def cache_root() -> Path:
    """Return ``PUDICA_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("PUDICA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pudica"


def list_folder(folder: Path, litter: list[Path] | None = None) -> list[Path]:
    """List a folder without hidden files; raise DataError if it can't be read.

    Sorted by names in NFC, so the order is the same on macOS, which stores NFD.

    Parameters
    ----------
    litter : list of Path, optional
        What systems and tools leave in folders is left out, and put there.
    """
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    if litter is not None:
        litter += [path for path in paths if path.name.casefold() in LITTER]
        paths = [path for path in paths if path.name.casefold() not in LITTER]
    return sorted(paths, key=lambda path: (to_nfc(path.name), path.name))


def walk_files(folder: Path, litter: list[Path] | None = None) -> Iterator[Path]:
    """Yield every file below a folder, recursively, as :func:`list_folder` lists them."""
    for path in list_folder(folder, litter):
        if path.is_dir():
            yield from walk_files(path, litter)
        else:
            yield path


def describe_litter(base: Path, litter: Sequence[Path]) -> list[str]:
    """Return the note on what was left out of a folder, if anything was."""
    if not litter:
        return []
    found = Counter(path.name for path in litter)
    shown = ", ".join(f"{name} ({n} times)" if n > 1 else name for name, n in sorted(found.items()))
    return [f"left out of {base}, since no part of the data: {escape_hidden(shown)}"]


def describe_origin(base: Path, segments: Sequence[tuple[str, int]], row: int) -> str:
    """Describe which file a row of the set comes from, and its row (from 0) in that file."""
    start = 0
    for name, count in segments:
        if row < start + count:
            inside = f"row {row - start}" if count > 1 else f"row {row} of the set"
            return f"{escape_hidden(str(base / name))}, {inside}"
        start += count
    raise IndexError(f"row {row} of {start}")
