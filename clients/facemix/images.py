"""Images of an edge or a model's owner, with as many answers each as there are attributes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from pudica.clients.data import ImageSet
from pudica.clients.data.errors import DataError
from pudica.clients.data.examples import Examples, describe, hash_classes
from pudica.clients.data.images import Positions
from pudica.models.errors import RequestError


class AttributeImages(Examples):
    """A map-style data set of images, or of pairs of an image and its label.

    A label is a class, or a vector (A,) of answers to A questions: 0 or 1 for attributes that an
    image has or not. Parameters and errors as of :class:`.Examples`.
    """

    questions: int
    """A; 1 where labels are classes, 0 where there are none."""

    def _check_example(self, example: Any) -> tuple[int, int, int]:
        image, *label = example if isinstance(example, tuple | list) else (example,)
        if len(label) > 1:
            raise DataError(
                f"{self.what}: must yield images, or pairs (image, label); its first item is a "
                f"{type(example).__name__} of {len(example)}"
            )
        shape = self._check_image(image)
        self.questions = self._count_questions(label[0]) if label else 0
        return shape

    def _count_questions(self, label: Any) -> int:
        try:
            answers = torch.as_tensor(label)
        except (TypeError, ValueError, RuntimeError):
            answers = torch.empty(0)
        whole = not answers.is_floating_point() and answers.ndim <= 1 and answers.numel()
        if not whole or answers.min() < 0:
            raise DataError(
                f"{self.what}: labels must be whole numbers from 0 on, one or a vector (A,) of "
                f"them, the first is {describe(label)}"
            )
        return int(answers.numel())

    def batch(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and answers, int64 (B, A); DataError as of the base class."""
        rows = np.arange(len(self))[positions]
        if isinstance(self.dataset, TensorDataset):
            found = self.dataset[torch.from_numpy(rows)]
        else:
            items = [self.dataset[int(row)] for row in rows]
            try:
                found = default_collate([i if isinstance(i, tuple | list) else (i,) for i in items])
            except RuntimeError as error:
                raise DataError(
                    f"{self.what}: images or labels of different shapes in one batch ({error})"
                ) from error
        images, *labels = found
        if not labels:
            return images.float(), torch.zeros(len(rows), 0, dtype=torch.int64)
        return images.float(), torch.as_tensor(labels[0]).reshape(len(rows), -1).long()

    @cached_property
    def attributes(self) -> np.ndarray:
        """All answers, int64 (N, A)."""
        parts = [self.batch(slice(n, n + 256))[1] for n in range(0, len(self), 256)]
        answers: np.ndarray = torch.cat(parts).numpy()
        return answers

    @property
    def names(self) -> str:
        """A fingerprint of what labels call the classes, where they are classes; else empty."""
        return hash_classes(self.dataset) if self.questions == 1 else ""

    @property
    def black(self) -> Tensor:
        """A black pixel, (C, 1, 1)."""
        return torch.zeros(self.shape[0], 1, 1)


Images = ImageSet | AttributeImages


def name_attributes(names: Sequence[str] | None, count: int) -> list[str]:
    """Return the names of some questions; ``count`` is 0 where there are no labels.

    Raises
    ------
    RequestError
        Too few names, or too many, or one that is there twice.
    """
    if names is None:
        return ["label"] if count == 1 else [f"attribute-{n}" for n in range(count)]
    if count not in (0, len(names)) or len(set(names)) < len(names):
        raise RequestError(
            f"attributes: {count} different names are needed, got {', '.join(names) or 'none'}"
        )
    return list(names)


def read_batch(images: Images, positions: Positions) -> tuple[Tensor, Tensor]:
    """Return images (B, C, H, W) and their answers, int64 (B, A)."""
    x, answers = images.batch(positions)
    if isinstance(images, ImageSet):
        answers = torch.from_numpy(images.attributes[positions])
    return x, answers
