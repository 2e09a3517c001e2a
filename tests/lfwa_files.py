"""Small files laid out as LFWA's, in both formats that MATLAB writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

PEOPLE = ("Aaron_Eckhart", "Bo_Li", "Zoë_Ball")
ATTRIBUTES = ("5_o_Clock_Shadow", "Male", "Young")


def image_names(count: int = 12) -> list[str]:
    """Return ``PERSON/FILE`` of each image; every third is of the same person."""
    people = [PEOPLE[number % len(PEOPLE)] for number in range(count)]
    return [f"{p}/{p}_{number // len(PEOPLE) + 1:04d}.jpg" for number, p in enumerate(people)]


def build_variables(count: int = 12, separator: str = "\\") -> dict[str, dict[str, Any]]:
    """Return by file what it holds; every other face is male, and the last quarter is for test."""
    rows = np.arange(count)
    answers = np.stack([rows % 3 == 0, rows % 2 == 1, rows % 5 < 3], axis=1)
    first_test = count - count // 4
    return {
        "lfw_att_40": {
            "AttrName": as_cells(ATTRIBUTES),
            "label": answers.astype(np.uint8),
            "name": as_cells([name.replace("/", separator) for name in image_names(count)]),
        },
        "indices_train_test": {
            "indices_img_train": rows[:first_test, None] + 1.0,
            "indices_img_test": rows[first_test:, None] + 1.0,
            "indices_identity_train": np.array([[1.0], [2.0]]),
            "indices_identity_test": np.array([[3.0]]),
        },
    }


def as_cells(texts: Sequence[str]) -> np.ndarray:
    """Return a column of cells of text."""
    return np.array([*texts, None], object)[:-1, None]


def write_lfwa(
    root: Path, count: int = 12, version: str = "7", separator: str = "\\", **changed: Any
) -> list[str]:
    """Write all of LFWA but the images; return their paths below the root.

    Parameters
    ----------
    version : {"6", "7", "7.3"}
    changed
        Variables by name, in place of the usual ones; None leaves one out.
    """
    folder = root / "lfwa"
    folder.mkdir(parents=True, exist_ok=True)
    for name, variables in build_variables(count, separator).items():
        values = {key: changed.get(key, value) for key, value in variables.items()}
        values = {key: value for key, value in values.items() if value is not None}
        if version == "7.3":
            write_hdf5(folder / f"{name}.mat", values)
        else:
            savemat(folder / f"{name}.mat", values, do_compression=version == "7")
    return [f"lfwa/lfw/{name}" for name in image_names(count)]


def write_hdf5(file: Path, values: dict[str, Any]) -> None:
    """Write a file as MATLAB's version 7.3: axes reversed, cells as references, text as UTF-16."""
    import h5py

    with h5py.File(file, "w", userblock_size=512) as stored:
        for name, value in values.items():
            if value.dtype == object:
                value = np.array([_store_text(stored, text) for text in value.ravel()], object)
                stored.create_dataset(name, data=value[None], dtype=h5py.ref_dtype)
            else:
                stored[name] = value.T
    with file.open("r+b") as handle:
        handle.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def _store_text(stored: Any, text: str) -> Any:
    codes = np.frombuffer(text.encode("utf-16-le"), "<u2")
    cell = stored.create_dataset(f"#refs#/{len(stored.get('#refs#', ()))}", data=codes[:, None])
    if not text:
        cell.attrs["MATLAB_empty"] = 1
    return cell.ref
