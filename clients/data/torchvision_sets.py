"""Data sets that torchvision can download and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pudica.clients.data.errors import DataError
from pudica.clients.data.places import DataLocation, walk_files
from pudica.clients.data.source import Content, RawImage, Source

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_FILES = (*_IDX, *(name.replace("train", "t10k") for name in _IDX))


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets on disk.

    Parameters
    ----------
    class_name : str
        The name in ``torchvision.datasets``.
    files : tuple of str
        Required files and folders, relative to the root.
    open : callable
        Reads the set from a root folder.
    """

    class_name: str
    files: tuple[str, ...]
    open: Callable[[Path], Content]

    def locate(self, location: DataLocation) -> Path | None:
        """Return torchvision's root folder if it contains all files of the set."""
        (root,) = location.candidates(".")
        return root if all((root / file).exists() for file in self.files) else None

    def scan(self, root: Path) -> Source:
        """Return the set in torchvision's root folder as a source."""
        paths = [root / file for file in self.files]
        files = tuple(
            chain.from_iterable(walk_files(path) if path.is_dir() else [path] for path in paths)
        )
        return Source(self.class_name, root, files, partial(self.open, root))

    def download(self, root: Path) -> None:
        """Download the set to a root folder.

        Raises
        ------
        DataError
            If the download fails.
        """
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
    segments = [(f"{class_name} train", len(images[0])), (f"{class_name} test", len(images[1]))]
    columns = {"label": pa.array(np.concatenate(labels))}
    names = {"label": list(parts[0].classes)}
    return Content(len(images[0]), len(images[1]), columns, segments, chain(*images), names)


def _open_celeba(root: Path) -> Content:
    parts = [_construct("CelebA", root, split=split) for split in ("train", "valid", "test")]
    attributes = [name for name in parts[0].attr_names if name]
    values = np.concatenate([part.attr.numpy() for part in parts])
    identities = np.concatenate([part.identity.numpy()[:, 0] for part in parts])
    columns = {name: pa.array(values[:, i]) for i, name in enumerate(attributes)}
    names = [f"celeba/img_align_celeba/{name}" for part in parts for name in part.filename]
    return Content(
        train=len(parts[0]) + len(parts[1]),
        test=len(parts[2]),
        columns={**columns, "identity": pa.array(identities)},
        segments=[(name, 1) for name in names],
        images=_join_paths(root, names),
        class_names={name: ["no", "yes"] for name in attributes},
    )


def _open_lfw(root: Path) -> Content:
    # The ten folds contain everybody; the "train" and "test" lists are for pair verification and
    # have no person in common, so they are no split for identification.
    people = _construct("LFWPeople", root, split="10fold", image_set="funneled")
    by_index = {index: name for name, index in people.class_to_idx.items()}
    columns = {"identity": pa.array([by_index[target] for target in people.targets])}
    names = [Path(file).relative_to(root).as_posix() for file in people.data]
    segments = [(name, 1) for name in names]
    return Content(len(names), 0, columns, segments, _join_paths(root, names))


def _join_paths(root: Path, names: list[str]) -> Iterator[RawImage]:
    return (root / name for name in names)


def _array_dataset(class_name: str, files: tuple[str, ...]) -> TorchvisionSet:
    return TorchvisionSet(class_name, files, partial(_open_arrays, class_name))


MNIST = _array_dataset("MNIST", tuple(f"MNIST/raw/{name}" for name in _IDX_FILES))
FASHION_MNIST = _array_dataset(
    "FashionMNIST", tuple(f"FashionMNIST/raw/{name}" for name in _IDX_FILES)
)
CIFAR10 = _array_dataset(
    "CIFAR10",
    tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
)
CIFAR100 = _array_dataset(
    "CIFAR100", tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))
)
CELEBA = TorchvisionSet(
    "CelebA",
    tuple(
        f"celeba/{name}"
        for name in (
            "list_attr_celeba.txt",
            "identity_CelebA.txt",
            "list_eval_partition.txt",
            "img_align_celeba",
        )
    ),
    _open_celeba,
)
LFW = TorchvisionSet(
    "LFWPeople",
    tuple(f"lfw-py/{name}" for name in ("people.txt", "lfw-names.txt", "lfw_funneled")),
    _open_lfw,
)
