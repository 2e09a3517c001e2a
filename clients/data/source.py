"""The interface between the readers of data formats and the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pudica.models.printable import escape_hidden

#: An image before decoding: encoded bytes, a file, or an array of shape (H, W) or (H, W, 3).
RawImage = bytes | Path | np.ndarray


@dataclass(frozen=True)
class Content:
    """A data set opened for reading: training rows first, then its own test split.

    Parameters
    ----------
    train, test : int
        Number of rows; ``test`` is 0 if the set has no test split of its own.
    columns : mapping of str to pyarrow array
        Every column that can serve as a label (integers, strings, booleans), including nulls.
    segments : sequence of (str, int)
        The files that the rows come from, in order, with their numbers of rows.
    images : iterable
        The images in the order of the rows, read lazily.
    class_names : mapping of str to list of str
        Names of a column's classes 0, 1, 2, …, where the data declare them.
    unusable : mapping of str to str
        Columns that cannot serve as a label, with their types.
    disguised : dict or None
        For disguised images the content of ``disguise.json``; such images are read by
        :func:`pudica.clients.data.disguised.copy_images`.
    """

    train: int
    test: int
    columns: Mapping[str, pa.Array | pa.ChunkedArray]
    segments: Sequence[tuple[str, int]]
    images: Iterable[RawImage | None]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    disguised: dict[str, object] | None = None


@dataclass(frozen=True)
class Source:
    """A data set that has been located but not read.

    Parameters
    ----------
    kind : str
        The reader; part of the fingerprint, since readers may differ on the same files.
    base : Path
        Folder that the files' names are relative to.
    files : tuple of Path
        Every file that the content depends on.
    open : callable
        Reads labels and returns the :class:`Content`.
    """

    kind: str
    base: Path
    files: tuple[Path, ...]
    open: Callable[[], Content]

    def relative_name(self, file: Path) -> str:
        """Return a file's name relative to the base."""
        return file.relative_to(self.base).as_posix()


def describe_origin(base: Path, segments: Sequence[tuple[str, int]], row: int) -> str:
    """Describe which file a row of the set comes from, and its row (from 0) in that file."""
    start = 0
    for name, count in segments:
        if row < start + count:
            inside = f"row {row - start}" if count > 1 else f"row {row} of the set"
            return f"{escape_hidden(str(base / name))}, {inside}"
        start += count
    raise IndexError(f"row {row} of {start}")
