"""Anybody's data set of (image, label), as our own are read: by positions, in batches."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from pudica.clients.data.errors import DataError
from pudica.clients.data.images import STATISTICS_CHUNK, ImageSet, Positions

SAMPLED = 32
_FLOATS = "float", "ToImage(), ToDtype(torch.float32, scale=True)"
_PIXELS = "uint8", "PILToTensor()"
_wrapped: WeakKeyDictionary[Any, Examples] = WeakKeyDictionary()


class Examples:
    """A map-style data set.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Yields pairs of an image, a float tensor (C, H, W), and its class.
    what : str
        What it is, for messages: ``train``, say.
    pixels : bool
        Images must be uint8 instead.

    Raises
    ------
    DataError
        It is empty, or yields something else.
    """

    def __init__(self, dataset: Any, what: str, pixels: bool = False) -> None:
        self.dataset = dataset
        self.what = what
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"{what}: must be a map-style data set, with __len__ and __getitem__, is "
                f"{type(dataset).__name__}"
            )
        if not len(dataset):
            raise DataError(f"{what}: holds no examples")
        self.pixels = pixels
        self.shape = self._check_example(dataset[0])
        self.mean: Tensor | float = 0.0
        self.std: Tensor | float = 1.0

    def _check_example(self, example: Any) -> tuple[int, int, int]:
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise DataError(
                f"{self.what}: must yield pairs (image, label); its first item is "
                f"{describe(example)}"
            )
        image, label = example
        shape = self._check_image(image)
        if not _is_class(label):
            raise DataError(
                f"{self.what}: labels must be whole numbers from 0 on, the first is "
                f"{describe(label)}"
            )
        return shape

    def _check_image(self, image: Any) -> tuple[int, int, int]:
        is_tensor = isinstance(image, Tensor) and image.ndim == 3
        if not is_tensor or not (
            image.dtype == torch.uint8 if self.pixels else image.is_floating_point()
        ):
            kind, transform = _PIXELS if self.pixels else _FLOATS
            raise DataError(
                f"{self.what}: images must be {kind} tensors (C, H, W), the first is "
                f"{describe(image)}; torchvision.transforms.v2 makes them so: {transform}"
            )
        channels, height, width = image.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Return float images (B, C, H, W) and labels (B,); raise DataError if shapes differ."""
        images, labels = self.read(positions)
        return images.float(), labels.long()

    def read(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Return images and labels as the data set yields them, as :meth:`batch` does."""
        rows = np.arange(len(self))[positions]
        if isinstance(self.dataset, TensorDataset):
            images, labels = self.dataset[torch.from_numpy(rows)]
            return images, labels
        try:
            images, labels = default_collate([self.dataset[int(row)] for row in rows])
        except RuntimeError as error:
            raise DataError(
                f"{self.what}: images of different shapes, or labels of different kinds, in one "
                f"batch ({error}); give them one size"
            ) from error
        return images, labels

    def denormalise(self, x: Tensor) -> Tensor:
        """Return images in units of [0, 1], by ``mean`` and ``std``."""
        return x * self.std + self.mean

    @property
    def content(self) -> str:
        """A fingerprint of some images, so that nodes can see whether they hold the same."""
        digest = hashlib.blake2b(f"{len(self)} {self.shape}".encode(), digest_size=8)
        for row in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)):
            images, labels = self.batch(np.array([row]))
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
        return digest.hexdigest()


def load_pixels(dataset: Any, what: str) -> ImageSet:
    """Read all of a map-style data set of uint8 images, without normalisation.

    Parameters and errors as of :class:`Examples`.
    """
    examples = Examples(dataset, what, pixels=True)
    images = np.empty((len(examples), *examples.shape), np.uint8)
    labels = np.empty(len(examples), np.int64)
    for start in range(0, len(examples), STATISTICS_CHUNK):
        part = slice(start, start + STATISTICS_CHUNK)
        x, y = examples.read(part)
        if tuple(x.shape[1:]) != examples.shape or x.dtype != torch.uint8:
            raise DataError(
                f"{what}: images of different shapes: {tuple(x.shape[1:])} of {x.dtype} "
                f"from row {start} on, the first is {examples.shape} of torch.uint8"
            )
        images[part], labels[part] = x.numpy(), y.numpy()
    zeros = torch.zeros(examples.shape[0], 1, 1)
    return ImageSet(images, np.arange(len(images)), labels, zeros, torch.ones_like(zeros), 0)


def as_examples(dataset: Any, what: str) -> Examples | ImageSet:
    """Return a data set as it is read here; the same object for the same data set."""
    if isinstance(dataset, Examples | ImageSet):
        return dataset
    try:
        if dataset not in _wrapped:
            _wrapped[dataset] = Examples(dataset, what)
        return _wrapped[dataset]
    except TypeError:  # a list, say, can't be a key
        return Examples(dataset, what)


def list_classes(dataset: Any) -> list[str]:
    """Return what a data set, or what it is made of, calls its classes, if it says so."""
    while dataset is not None:
        classes = getattr(dataset, "classes", None)
        if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
            return list(classes)
        dataset = getattr(dataset, "dataset", None)
    return []


def hash_classes(dataset: Any) -> str:
    """Return a fingerprint of the names of a data set's classes, which may be private; or "".

    Who guesses all of them in order can see that it was right.
    """
    names = list_classes(dataset)
    text = json.dumps(names).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest() if names else ""


def _is_class(label: Any) -> bool:
    if isinstance(label, Tensor):
        return label.ndim == 0 and not label.is_floating_point() and int(label) >= 0
    return isinstance(label, int | np.integer) and not isinstance(label, bool) and int(label) >= 0


def describe(value: Any) -> str:
    """Return what kind of thing an item is, and nothing of what is in it."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
