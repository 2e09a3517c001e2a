"""The architectures behind :mod:`pudica.models.zoo`.

Every constructor takes an :class:`ImageTask` and returns a freshly initialised module that maps
images to logits. The registry takes care of names, limits and seeds.
"""

from __future__ import annotations

from typing import NamedTuple

TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's classifiers."""

ImageSize = int | tuple[int, int]
"""The side of a square, or height and width."""


class ImageTask(NamedTuple):
    """The images and classes that a classifier must fit."""

    num_classes: int
    channels: int
    image_size: ImageSize

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size
