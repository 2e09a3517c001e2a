"""Data sets stored as folders of image files: of classes, and UTKFace's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pudica.clients.data.errors import DataError, join_names, validate_data_label
from pudica.clients.data.source import (
    Content,
    DataLocation,
    Source,
    describe_litter,
    list_folder,
    walk_files,
)
from pudica.clients.data.split_names import ADVICE, BY_NAME, KEYWORDS, SplitRules, assign_splits
from pudica.models.printable import escape_hidden, to_nfc

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".pnm"),
    *(".tif", ".tiff", ".webp"),
)
"""File extensions recognised as images."""

# `[age]_[gender]_[race]_[date]`; a handful of the original files lack gender or race.
_UTKFACE = re.compile(r"^(?P<age>\d{1,3})_(?P<gender>[01]?)_(?:(?P<race>[0-4]?)_)?\d+")


def scan_image_folder(folder: Path, rules: SplitRules = BY_NAME, column: str = "label") -> Source:
    """Return a folder in torchvision's ``ImageFolder`` layout as a source.

    Parameters
    ----------
    folder : Path
        ``folder/CLASS/image``, or ``folder/train/CLASS/image`` and ``folder/test/CLASS/image``;
        validation images join the training pool.
    column : str
        Name of the label column.

    Raises DataError if there are no class folders; if one has an invalid name, is empty or contains
    files other than images; if it is not plain which folders are splits; or if training and test
    have different classes.
    """
    litter: list[Path] = []
    folders = _find_class_folders(folder, litter)
    by_name = {path.name: path for path in folders}
    splits = assign_splits(by_name, rules, folder, partial(_are_classes, folder, folders))
    if splits is None:
        pool, held, notes = [folder], [], []
    else:
        paths, note = splits
        pool, held, notes = [*paths["train"], *paths["validation"]], paths["test"], [note]
    train, test = (_list_labelled(part, litter) for part in (pool, held))
    ours, theirs = ({to_nfc(label) for _, label in part} for part in (train, test))
    if test and ours != theirs:
        raise DataError(
            f"{folder}: class folders differ between splits: train has {len(ours)}, test has "
            f"{len(theirs)}; only in train: {sorted(ours - theirs)}, "
            f"only in test: {sorted(theirs - ours)}"
        )
    files = tuple(file for file, _ in train + test)
    columns = {column: pa.array([label for _, label in train + test], pa.string())}
    notes += describe_litter(folder, litter)
    opener = partial(_build_content, folder, files, len(train), columns)
    # Which folder names an image's class, and which images are for test, hangs on it too.
    kind = f"image-folder:{column}:{'classes' if splits is None else len(train)}"
    return Source(kind, folder, files, opener, notes)


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
    litter: list[Path] = []
    files = tuple(_find_images(folder, litter))
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
    return Source("utkface", folder, files, opener, describe_litter(folder, litter))


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


def _are_classes(folder: Path, folders: Sequence[Path], named: Collection[str]) -> bool:
    """Tell whether folders, some of them named like splits, are classes themselves.

    Raises DataError where that is not plain.
    """
    nested = [path for path in folders if _holds_folders_only(path)]
    if len(named) == len(folders) and not nested:
        verb = "holds" if len(named) == 1 else "hold"
        raise DataError(
            f"{folder}: {join_names(named)} {verb} images without a class: put them at "
            f"{next(iter(named))}/CLASS/image; if these are the classes, {ADVICE}"
        )
    if not any(path.name in named for path in nested):
        _refuse_unnamed_splits(folder, nested)
        return True
    if strange := [path.name for path in folders if path.name not in named]:
        raise DataError(
            f"{folder} has the folders {join_names(named)} and beside them "
            f"{join_names(strange)}: which split are those? Allowed are names with "
            f"{', '.join(KEYWORDS)}; or {ADVICE}"
        )
    return False


def _holds_folders_only(folder: Path) -> bool:
    """Tell whether images lie deeper: as in a split's folder, or a class's with folders in it."""
    found = list_folder(folder, [])
    is_image = (path.suffix.lower() in EXTENSIONS and path.is_file() for path in found)
    return any(path.is_dir() for path in found) and not any(is_image)


def _refuse_unnamed_splits(folder: Path, nested: Sequence[Path]) -> None:
    """Raise DataError if folders look like splits, since they hold folders of the same names."""
    first: dict[str, str] = {}  # by the name of a folder inside, who had it before all others
    for each in nested:
        inside = [path.name for path in list_folder(each, []) if path.is_dir()]
        for other, count in Counter(first[name] for name in inside if name in first).items():
            if count > 1:
                common = [name for name in inside if first.get(name) == other]
                raise DataError(
                    f"{folder}: the folders {join_names([other, each.name])} both hold "
                    f"{join_names(common[:5])}: are they splits? Then {ADVICE}"
                )
        for name in inside:
            first.setdefault(name, each.name)


def _find_class_folders(folder: Path, litter: list[Path]) -> list[Path]:
    found = list_folder(folder, litter)
    if stray := [path for path in found if path.suffix.lower() in EXTENSIONS and path.is_file()]:
        first = escape_hidden(str(stray[0]))
        raise DataError(f"{first}: an image outside a class folder; put it at CLASS/image")
    folders = [path for path in found if path.is_dir()]
    if not folders:
        raise DataError(f"{folder} holds no class folders: images belong at {folder}/CLASS/image")
    return folders


def _list_labelled(parts: Sequence[Path], litter: list[Path]) -> list[tuple[Path, str]]:
    """Return the images of each class folder below some folders, with their labels."""
    labelled = []
    for part in parts:
        folders = _find_class_folders(part, litter)
        for path in folders:
            validate_data_label(path.name, f"{part}: the class folder")
        for path in folders:
            files = _find_images(path, litter)
            if not files:
                raise DataError(f"empty class folder {path}: add images or remove it")
            labelled += [(file, path.name) for file in files]
    return labelled


def _find_images(folder: Path, litter: list[Path]) -> list[Path]:
    files = list(walk_files(folder, litter))
    if strange := [file for file in files if file.suffix.lower() not in EXTENSIONS]:
        raise DataError(
            f"{escape_hidden(str(strange[0]))}: not an image file ({len(strange)} such); "
            f"allowed: {', '.join(EXTENSIONS)}"
        )
    return files
