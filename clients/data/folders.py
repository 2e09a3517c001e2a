"""Data sets stored as folders of image files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pudica.clients.data.errors import DataError
from pudica.clients.data.naming import validate_data_label
from pudica.clients.data.places import DataLocation, list_folder, walk_files
from pudica.clients.data.source import Content, Source
from pudica.models.printable import escape_hidden, to_nfc

#: File extensions recognised as images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")

#: Folder names recognised as splits; validation images join the training pool.
SPLITS = {"train": "train", "test": "test", "val": "train", "valid": "train", "validation": "train"}

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

    Raises
    ------
    DataError
        If there are no class folders; if one has an invalid name, is empty or contains files
        other than images; or if training and test have different classes.
    """
    parts = _find_split_folders(folder)
    train, test = ([_images_by_class(part) for part in parts[split]] for split in ("train", "test"))
    _check_same_classes(folder, train, test)
    groups = [_flatten(train), _flatten(test)]
    files = tuple(file for group in groups for file, _ in group)
    labels = [label for group in groups for _, label in group]
    columns = {column: pa.array(labels, pa.string())}
    opener = partial(_build_content, folder, files, len(groups[0]), columns)
    return Source(f"image-folder:{column}", folder, files, opener)


def locate_utkface(location: DataLocation) -> Path | None:
    """Return the folder with UTKFace's original files, or None."""
    for folder in location.candidates("UTKFace", "utkface", "."):
        if folder.is_dir() and any(_UTKFACE.match(path.name) for path in list_folder(folder)):
            return folder
    return None


def scan_utkface(folder: Path) -> Source:
    """Return UTKFace's original folder as a source.

    Parameters
    ----------
    folder : Path
        Folder of the images, named ``[age]_[gender]_[race]_[date].jpg``.

    Raises
    ------
    DataError
        If a file is not an image or its name does not follow the pattern.
    """
    files = tuple(_find_images(folder))
    matches = [_match_name(file) for file in files]
    columns = {
        name: pa.array([int(match[name]) if match[name] else None for match in matches], pa.int64())
        for name in ("age", "gender", "race")
    }
    return Source(
        "utkface", folder, files, partial(_build_content, folder, files, len(files), columns)
    )


def _build_content(
    folder: Path, files: Sequence[Path], train: int, columns: dict[str, pa.Array]
) -> Content:
    segments = [(file.relative_to(folder).as_posix(), 1) for file in files]
    return Content(train, len(files) - train, columns, segments, files)


def _match_name(file: Path) -> re.Match[str]:
    match = _UTKFACE.match(file.name)
    if match is None:
        raise DataError(
            f"{escape_hidden(str(file))}: the name is not [age]_[gender]_[race]_[date].jpg "
            "with gender 0 or 1 and race 0 to 4"
        )
    return match


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
    stray = [path for path in list_folder(folder) if path.suffix.lower() in EXTENSIONS]
    if stray:
        first = escape_hidden(str(stray[0]))
        raise DataError(f"{first}: an image outside a class folder; put it at CLASS/image")
    folders = [path for path in list_folder(folder) if path.is_dir()]
    if not folders:
        raise DataError(f"{folder} holds no class folders: images belong at {folder}/CLASS/image")
    return folders


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class."""
    folders = _find_class_folders(folder)
    for path in folders:
        validate_data_label(path.name, f"{folder}: the class folder")
    images = {path.name: list(_find_images(path)) for path in folders}
    if empty := [name for name, files in images.items() if not files]:
        raise DataError(f"empty class folder {folder / empty[0]}: add images or remove it")
    return images


def _find_images(folder: Path) -> list[Path]:
    files = list(walk_files(folder))
    if strange := [file for file in files if file.suffix.lower() not in EXTENSIONS]:
        raise DataError(
            f"{escape_hidden(str(strange[0]))}: not an image file ({len(strange)} such); "
            f"allowed: {', '.join(EXTENSIONS)}"
        )
    return files


def _flatten(parts: list[dict[str, list[Path]]]) -> list[tuple[Path, str]]:
    return [(file, name) for part in parts for name, files in part.items() for file in files]


def _check_same_classes(
    folder: Path, train: list[dict[str, list[Path]]], test: list[dict[str, list[Path]]]
) -> None:
    ours, theirs = ({to_nfc(name) for part in parts for name in part} for parts in (train, test))
    if test and ours != theirs:
        raise DataError(
            f"{folder}: class folders differ between splits: train has {len(ours)}, test has "
            f"{len(theirs)}; only in train: {sorted(ours - theirs)}, "
            f"only in test: {sorted(theirs - ours)}"
        )
