"""LFWA: the faces of LFW with 40 binary attributes, as the authors of CelebA give it away.

``lfw_att_40.mat`` holds ``AttrName``, ``label`` (images × attributes, 0 or 1) and ``name``, person
and file with a backslash between; ``indices_train_test.mat`` says which of these are for training
and which for test, counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pudica.clients.data.errors import DataError, join_names, validate_data_labels
from pudica.clients.data.folders import EXTENSIONS
from pudica.clients.data.matlab import read_matlab
from pudica.clients.data.source import Content, DataLocation, Source, describe_litter, walk_files
from pudica.models.printable import quote, to_nfc

ATTRIBUTES, INDICES = "lfw_att_40.mat", "indices_train_test.mat"
IMAGE_FOLDERS = ("lfw", "lfw-deepfunneled", "lfw_funneled", "lfw-funneled")
_TRAIN, _TEST = "indices_img_train", "indices_img_test"
_NAME = re.compile(r"(?P<person>(?!\.)[^/]+)/(?!\.)[^/]+")
_SHOWN = 5

Rows = NDArray[np.int64]


class Annotations(NamedTuple):
    """What the file of attributes says: of N images, answers to A questions.

    Attributes
    ----------
    images : list of str
        ``PERSON/FILE`` of each.
    attributes : list of str
    answers : ndarray
        Shape (N, A), 0 or 1.
    """

    images: list[str]
    attributes: list[str]
    answers: Rows


def locate_lfwa(location: DataLocation) -> Path | None:
    """Return the folder with both ``.mat`` files and the images, or None."""
    for folder in location.candidates("lfwa", "LFWA", "LFWA+"):
        files = all((folder / name).is_file() for name in (ATTRIBUTES, INDICES))
        if files and _find_images(folder):
            return folder
    return None


def scan_lfwa(folder: Path) -> Source:
    """Return LFWA in a folder as a source."""
    images = _find_images(folder)
    assert images  # else it was not located
    litter: list[Path] = []
    there = [file for file in walk_files(images, litter) if file.suffix.lower() in EXTENSIONS]
    files = (folder / ATTRIBUTES, folder / INDICES, *there)
    opener = partial(_open, folder, images, there)
    return Source("lfwa", folder, files, opener, describe_litter(folder, litter))


def _find_images(folder: Path) -> Path | None:
    return next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)


def _open(folder: Path, images: Path, there: Sequence[Path]) -> Content:
    found = _read_annotations(folder / ATTRIBUTES)
    train, test = _read_split(folder / INDICES, len(found.images))
    by_name = {to_nfc(file.relative_to(images).as_posix()): file for file in there}
    rows = np.concatenate([train, test])
    names = [found.images[row] for row in rows]
    if missing := [name for name in names if name not in by_name]:
        raise DataError(
            f"{images} lacks {join_names(map(quote, missing[:_SHOWN]))} ({len(missing)} such), "
            f"which {ATTRIBUTES} names: unpack all of LFW there"
        )
    columns = {name: found.answers[rows, place] for place, name in enumerate(found.attributes)}
    people = [name.partition("/")[0] for name in names]
    files = [by_name[name] for name in names]
    return Content(
        train=len(train),
        test=len(test),
        columns=pa.table({**columns, "identity": people}),
        segments=[(file.relative_to(folder).as_posix(), 1) for file in files],
        images=files,
        class_names={name: ["no", "yes"] for name in found.attributes},
        notes=[
            *_describe_left_out(sorted(by_name.keys() - set(found.images)), "without attributes"),
            *_describe_left_out(sorted(set(found.images) - set(names)), f"in no list of {INDICES}"),
        ],
    )


def _describe_left_out(names: Sequence[str], why: str) -> list[str]:
    """Return the note on images that are left out, if any are."""
    more = ", …" if len(names) > _SHOWN else ""
    shown = join_names(names[:_SHOWN]) + more
    return [f"left out, {why}: {len(names)} images ({shown})"] if names else []


def _read_annotations(file: Path) -> Annotations:
    found = read_matlab(file, "AttrName", "label", "name")
    texts = {name: _require_texts(file, name, found[name]) for name in ("AttrName", "name")}
    # As CelebA spells the same attributes.
    attributes = [text.strip().replace(" ", "_") for text in texts["AttrName"]]
    attributes = validate_data_labels(attributes, f"{file}: AttrName:")
    images = [to_nfc(text.strip().replace("\\", "/")) for text in texts["name"]]
    for row, name in enumerate(images):
        if not _NAME.fullmatch(name):
            raise DataError(f"{file}: name {row + 1} is {quote(name)}; allowed: PERSON\\FILE")
    if len(set(images)) < len(images):
        twice = next(name for name in images if images.count(name) > 1)
        raise DataError(f"{file}: name: {quote(twice)} is there twice")
    return Annotations(images, attributes, _read_answers(file, found["label"], images, attributes))


def _require_texts(file: Path, variable: str, values: Any) -> list[str]:
    texts = np.ravel(values)
    if texts.dtype.kind != "U" or not len(texts):
        raise DataError(f"{file}: {variable} must be a cell array of texts")
    return [str(text) for text in texts]


def _read_answers(
    file: Path, values: Any, images: Sequence[str], attributes: Sequence[str]
) -> Rows:
    answers, wanted = _require_numbers(file, "label", values), (len(images), len(attributes))
    if answers.shape != wanted:
        shapes = ["x".join(map(str, shape)) for shape in (answers.shape, wanted)]
        raise DataError(
            f"{file}: label is of shape {shapes[0]}; it must be {shapes[1]}, a row for each name "
            "and a column for each AttrName"
        )
    if (strange := np.argwhere((answers != 0) & (answers != 1))).size:
        row, place = strange[0]
        raise DataError(
            f"{file}: label of {quote(images[row])}, {quote(attributes[place])}, is "
            f"{answers[row, place]:g}; allowed: 0, 1"
        )
    return answers.astype(np.int64)


def _read_split(file: Path, count: int) -> tuple[Rows, Rows]:
    """Return the rows for training and for test, from 0, each sorted."""
    found = read_matlab(file, _TRAIN, _TEST)
    train, test = (_read_indices(file, name, found[name], count) for name in (_TRAIN, _TEST))
    if (both := np.intersect1d(train, test)).size:
        raise DataError(f"{file}: {both[0] + 1} is in {_TRAIN} and in {_TEST}")
    return train, test


def _read_indices(file: Path, variable: str, values: Any, count: int) -> Rows:
    numbers = _require_numbers(file, variable, values).ravel()
    if not len(numbers):
        raise DataError(f"{file}: {variable} is empty")
    wrong = ~((numbers >= 1) & (numbers <= count) & (numbers == np.floor(numbers)))  # NaN, too
    if wrong.any():
        raise DataError(
            f"{file}: {variable} has {numbers[wrong][0]:g}; allowed: whole numbers from 1 to "
            f"{count}"
        )
    rows, times = np.unique(numbers.astype(np.int64), return_counts=True)
    if times.max() > 1:
        raise DataError(f"{file}: {variable} has {rows[times > 1][0]} twice")
    return rows - 1


def _require_numbers(file: Path, variable: str, values: Any) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise DataError(f"{file}: {variable} must hold numbers")
    return values.astype(np.float64)
