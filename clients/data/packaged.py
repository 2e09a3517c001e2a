"""Data sets that come with a package: torchvision's, and the digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pudica.clients.data.errors import DataError
from pudica.clients.data.source import Content, DataLocation, Source, walk_files

_DIGITS = Path("datasets", "data", "digits.csv.gz")


def locate_digits(_: DataLocation) -> Path | None:
    """Return scikit-learn's folder, without importing it."""
    spec = find_spec("sklearn")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder and (folder / _DIGITS).is_file() else None


def scan_digits(folder: Path) -> Source:
    """Return the digits in scikit-learn's folder as a source."""
    return Source("digits", folder, (folder / _DIGITS,), _open_digits)


def _open_digits() -> Content:
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Content(
        train=len(images),
        columns=pa.table({"label": digits.target}),
        segments=[(_DIGITS.as_posix(), len(images))],
        images=images,
    )


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets on disk."""

    class_name: str  # in `torchvision.datasets`
    folder: str  # below the root of all data sets
    files: tuple[str, ...]  # files and folders that it must contain
    open: Callable[[str, Path], Content]  # given the class's name and the root

    def locate(self, location: DataLocation) -> Path | None:
        """Return torchvision's root folder if it contains all files of the set."""
        (root,) = location.candidates(".")
        return root if all((root / self.folder / file).exists() for file in self.files) else None

    def scan(self, root: Path) -> Source:
        """Return the set in torchvision's root folder as a source."""
        paths = [root / self.folder / file for file in self.files]
        files = tuple(
            chain.from_iterable(walk_files(path) if path.is_dir() else [path] for path in paths)
        )
        return Source(self.class_name, root, files, partial(self.open, self.class_name, root))

    def download(self, root: Path) -> None:
        """Download the set to a root folder; raise DataError if that fails."""
        _construct(self.class_name, root, download=True)


def _construct(class_name: str, root: Path, **options: Any) -> Any:
    import torchvision.datasets  # slow to import

    try:
        return getattr(torchvision.datasets, class_name)(root, **options)
    except Exception as error:  # network, archive and format errors have many types
        action = "download" if options.get("download") else "read"
        raise DataError(
            f"torchvision could not {action} {class_name} below {root}: {error}"
        ) from error


def _open_arrays(class_name: str, root: Path) -> Content:
    # Torchvision unpickles CIFAR, which can execute arbitrary code: acceptable only because its
    # loader first compares every file with the official MD5 sums.
    parts = [_construct(class_name, root, train=train) for train in (True, False)]
    images = [np.asarray(part.data) for part in parts]
    labels = [np.asarray(part.targets, dtype=np.int64) for part in parts]
    for rows, targets in zip(images, labels, strict=True):
        if len(rows) != len(targets):
            raise DataError(
                f"{class_name} below {root}: {len(rows)} images but {len(targets)} labels"
            )
    train, test = map(len, images)
    return Content(
        train=train,
        test=test,
        columns=pa.table({"label": np.concatenate(labels)}),
        segments=[(f"{class_name} train", train), (f"{class_name} test", test)],
        images=chain(*images),
        # Of the others the registry has shorter names.
        class_names={"label": list(parts[0].classes)} if class_name == "CIFAR100" else {},
    )


def _open_celeba(class_name: str, root: Path) -> Content:
    parts = [_construct(class_name, root, split=split) for split in ("train", "valid", "test")]
    attributes = [name for name in parts[0].attr_names if name]
    values = np.concatenate([part.attr.numpy() for part in parts])
    columns = {name: values[:, i] for i, name in enumerate(attributes)}
    columns["identity"] = np.concatenate([part.identity.numpy()[:, 0] for part in parts])
    names = [f"celeba/img_align_celeba/{name}" for part in parts for name in part.filename]
    return Content(
        train=len(parts[0]) + len(parts[1]),
        test=len(parts[2]),
        columns=pa.table(columns),
        segments=[(name, 1) for name in names],
        images=(root / name for name in names),
        class_names={name: ["no", "yes"] for name in attributes},
    )


def _open_lfw(class_name: str, root: Path) -> Content:
    # The ten folds contain everybody; the "train" and "test" lists are for pair verification and
    # have no person in common, so they are no split for identification.
    people = _construct(class_name, root, split="10fold", image_set="funneled")
    by_index = {index: name for name, index in people.class_to_idx.items()}
    files = [Path(file) for file in people.data]
    return Content(
        train=len(files),
        columns=pa.table({"identity": [by_index[target] for target in people.targets]}),
        segments=[(file.relative_to(root).as_posix(), 1) for file in files],
        images=files,
    )


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_FILES = (*_IDX, *(name.replace("train", "t10k") for name in _IDX))
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_LISTS = ("list_attr_celeba.txt", "identity_CelebA.txt", "list_eval_partition.txt")
_PEOPLE = ("people.txt", "lfw-names.txt", "lfw_funneled")

MNIST = TorchvisionSet("MNIST", "MNIST/raw", _IDX_FILES, _open_arrays)
FASHION_MNIST = TorchvisionSet("FashionMNIST", "FashionMNIST/raw", _IDX_FILES, _open_arrays)
CIFAR10 = TorchvisionSet("CIFAR10", "cifar-10-batches-py", _BATCHES, _open_arrays)
CIFAR100 = TorchvisionSet("CIFAR100", "cifar-100-python", ("train", "test", "meta"), _open_arrays)
CELEBA = TorchvisionSet("CelebA", "celeba", (*_LISTS, "img_align_celeba"), _open_celeba)
LFW = TorchvisionSet("LFWPeople", "lfw-py", _PEOPLE, _open_lfw)
