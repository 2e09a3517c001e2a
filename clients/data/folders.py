"""Data sets stored as folders of image files: of classes, and UTKFace's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pudica.clients.data.errors import DataError, validate_data_label
from pudica.clients.data.source import Content, DataLocation, Source, list_folder, walk_files
from pudica.models.printable import escape_hidden, to_nfc

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""File extensions recognised as images."""
SPLITS = {"train": "train", "test": "test", "val": "train", "valid": "train", "validation": "train"}
"""Folder names recognised as splits; validation images join the training pool."""

# `[age]_[gender]_[race]_[date]`; a handful of the original files lack gender or race.
_UTKFACE = re.compile(r"^(?P<age>\d{1,3})_(?P<gender>[01]?)_(?:(?P<race>[0-4]?)_)?\d+")


def scan_image_folder(folder: Path, column: str = "label") -> Source:
    """Return a folder in torchvision's ``ImageFolder`` layout as a source.

    Parameters
    ----------
    folder : Path
        ``folder/CLASS/image``, or ``folder/train/CLASS/image`` and ``folder/test/CLASS/image``.
    column : str
        Name of the label column.

    Raises DataError if there are no class folders; if one has an invalid name, is empty or contains
    files other than images; or if training and test have different classes.
    """
    parts = _find_split_folders(folder)
    train, test = (_list_labelled(parts[split]) for split in ("train", "test"))
    ours, theirs = ({to_nfc(label) for _, label in part} for part in (train, test))
    if test and ours != theirs:
        raise DataError(
            f"{folder}: class folders differ between splits: train has {len(ours)}, test has "
            f"{len(theirs)}; only in train: {sorted(ours - theirs)}, "
            f"only in test: {sorted(theirs - ours)}"
        )
    files = tuple(file for file, _ in train + test)
    columns = {column: pa.array([label for _, label in train + test], pa.string())}
    opener = partial(_build_content, folder, files, len(train), columns)
    return Source(f"image-folder:{column}", folder, files, opener)


def locate_utkface(location: DataLocation) -> Path | None:
    """Return the folder with UTKFace's original files, or None."""
    for folder in location.candidates("UTKFace", "utkface", "."):
        if folder.is_dir() and any(_UTKFACE.match(path.name) for path in list_folder(folder)):
            return folder
    return None


def scan_utkface(folder: Path) -> Source:
    """Return UTKFace's original folder of ``[age]_[gender]_[race]_[date].jpg`` as a source.

    Raises DataError if a file is not an image or its name does not follow the pattern.
    """
    files = tuple(_find_images(folder))
    matches = [_UTKFACE.match(file.name) for file in files]
    if None in matches:
        raise DataError(
            f"{escape_hidden(str(files[matches.index(None)]))}: the name is not "
            "[age]_[gender]_[race]_[date].jpg with gender 0 or 1 and race 0 to 4"
        )
    columns = {}
    for name in ("age", "gender", "race"):
        values = [match[name] for match in matches if match]
        columns[name] = pa.array([int(value) if value else None for value in values], pa.int64())
    opener = partial(_build_content, folder, files, len(files), columns)
    return Source("utkface", folder, files, opener)


def _build_content(
    folder: Path, files: Sequence[Path], train: int, columns: dict[str, pa.Array]
) -> Content:
    return Content(
        train=train,
        test=len(files) - train,
        columns=pa.table(columns),
        segments=[(file.relative_to(folder).as_posix(), 1) for file in files],
        images=files,
    )


def _find_split_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders that contain class folders, by split."""
    folders = _find_class_folders(folder)
    if "train" not in {path.name for path in folders}:
        return {"train": [folder], "test": []}
    if strange := [path.name for path in folders if path.name not in SPLITS]:
        raise DataError(
            f"{folder} has a folder 'train' and beside it {strange}: allowed beside it are "
            f"{', '.join(sorted(set(SPLITS) - {'train'}))}, or class folders and no 'train'"
        )
    return {
        split: [path for path in folders if SPLITS[path.name] == split]
        for split in ("train", "test")
    }


def _find_class_folders(folder: Path) -> list[Path]:
    found = list_folder(folder)
    if stray := [path for path in found if path.suffix.lower() in EXTENSIONS]:
        first = escape_hidden(str(stray[0]))
        raise DataError(f"{first}: an image outside a class folder; put it at CLASS/image")
    folders = [path for path in found if path.is_dir()]
    if not folders:
        raise DataError(f"{folder} holds no class folders: images belong at {folder}/CLASS/image")
    return folders


def _list_labelled(parts: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the images of each class folder below some folders, with their labels."""
    labelled = []
    for part in parts:
        folders = _find_class_folders(part)
        for path in folders:
            validate_data_label(path.name, f"{part}: the class folder")
        for path in folders:
            files = _find_images(path)
            if not files:
                raise DataError(f"empty class folder {path}: add images or remove it")
            labelled += [(file, path.name) for file in files]
    return labelled


def _find_images(folder: Path) -> list[Path]:
    files = list(walk_files(folder))
    if strange := [file for file in files if file.suffix.lower() not in EXTENSIONS]:
        raise DataError(
            f"{escape_hidden(str(strange[0]))}: not an image file ({len(strange)} such); "
            f"allowed: {', '.join(EXTENSIONS)}"
        )
    return files
