"""Variables of MATLAB's files: of version 7 by scipy, of 7.3, which is HDF5, by h5py."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pudica.clients.data.errors import DataError, join_names

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEADER, _HDF5_HEADER = 128, 512
"""Bytes in front of the variables, and in front of what is HDF5."""
_COMPRESSED = 15
"""The type of a variable that is compressed."""
_ALLOWED = "Allowed: version 7 (save with '-v7') and 7.3 ('-v7.3')"


def read_matlab(file: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Return variables of a ``.mat`` file, in MATLAB's shapes; a cell array of texts is of ``str``.

    Parameters
    ----------
    names : str
        Of the variables, which hold numbers or cells of text.

    Raises
    ------
    DataError
        The file is missing, damaged, of another version, or lacks a variable; or it is of version
        7.3, and h5py is not installed.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(_HDF5_HEADER + len(_HDF5))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    read = _read_hdf5 if _HDF5 in (start[: len(_HDF5)], start[_HDF5_HEADER:]) else _read_compressed
    try:
        return read(file, names)
    except DataError:
        raise
    except Exception as error:  # of damaged bytes, both readers raise many types
        raise DataError(
            f"{file} can't be read as a MATLAB file, it is damaged or something else: {error}. "
            f"{_ALLOWED}"
        ) from error


def _require_variables(file: Path, wanted: tuple[str, ...], found: list[str]) -> None:
    for name in wanted:
        if name not in found:
            raise DataError(f"{file}: there is no variable '{name}'; it has: {join_names(found)}")


def _read_compressed(file: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    from scipy.io import loadmat, whosmat  # slow to import

    _verify_checksums(file)
    _require_variables(file, names, [name for name, *_ in whosmat(file)])
    found = loadmat(file, variable_names=names)
    return {name: _unpack_cells(found[name]) for name in names}


def _verify_checksums(file: Path) -> None:
    """Decompress all variables: scipy crashes on some that are damaged; zlib notices.

    Raises DataError if a variable is not compressed, as before version 7; otherwise what struct and
    zlib raise.
    """
    content = file.read_bytes()
    order = "<" if content[_HEADER - 2 : _HEADER] == b"IM" else ">"
    place = _HEADER
    while place < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind != _COMPRESSED:
            raise DataError(f"{file} is no MATLAB file whose variables are compressed. {_ALLOWED}")
        place += struct.calcsize("II") + size
        zlib.decompress(content[place - size : place])


def _unpack_cells(values: NDArray[Any]) -> NDArray[Any]:
    """Return cells of text as an array of ``str``, anything else as it is."""
    if values.dtype != object:
        return values
    texts = ["".join(map(str, np.ravel(cell))) for cell in values.ravel()]
    return np.array(texts, str).reshape(values.shape)


def _read_hdf5(file: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        import h5py  # needed for these files alone
    except ImportError as error:
        raise DataError(
            f"{file} is of MATLAB's version 7.3, which is read by h5py: `pip install h5py`; or "
            "save it in MATLAB with '-v7'"
        ) from error
    with h5py.File(file, "r") as stored:
        _require_variables(file, names, [name for name in stored if name != "#refs#"])
        return {name: _read_dataset(stored, stored[name][()]) for name in names}


def _read_dataset(stored: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Return what HDF5 holds with its axes reversed, and cells as references."""
    if values.dtype != object:
        return values.T
    texts = [_decode_text(stored[cell]) for cell in values.T.ravel()]
    return np.array(texts, str).reshape(values.T.shape)


def _decode_text(cell: Any) -> str:
    """Return a text that is stored as numbers of UTF-16."""
    if cell.attrs.get("MATLAB_empty", 0):
        return ""
    return bytes(np.ravel(cell[()]).astype("<u2").tobytes()).decode("utf-16-le")
