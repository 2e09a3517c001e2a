"""Where data and cache are stored on this machine, and how their folders are listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pudica.clients.data.errors import DataError
from pudica.models.printable import to_nfc


@dataclass(frozen=True)
class DataLocation:
    """Where to look for a data set.

    Parameters
    ----------
    root : Path
        The folder of all data sets, each in its own subfolder.
    path : Path or None
        The folder or file of the data set itself, if given.
    """

    root: Path
    path: Path | None = None

    def candidates(self, *folders: str) -> list[Path]:
        """Return the paths to try: ``path`` if given, else each of ``folders`` under the root."""
        return [self.path] if self.path else [self.root / folder for folder in folders]


def data_root(root: Path | None = None) -> Path:
    """Return ``root``, else ``PUDICA_DATA``, else ``./data``."""
    return (root or Path(os.environ.get("PUDICA_DATA") or "data")).expanduser()


def cache_root() -> Path:
    """Return ``PUDICA_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("PUDICA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pudica"


def list_folder(folder: Path) -> list[Path]:
    """List the contents of a folder, sorted, without hidden files.

    Names are compared in NFC, so the order is the same on macOS, which stores NFD.

    Raises
    ------
    DataError
        If the folder is missing or cannot be read.
    """
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(paths, key=lambda path: (to_nfc(path.name), path.name))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder recursively, in a fixed order, without hidden ones.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    for path in list_folder(folder):
        if path.is_dir():
            yield from walk_files(path)
        else:
            yield path
