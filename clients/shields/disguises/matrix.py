"""The matrix transformations of paper 001 (DLMT), Eqs. (1) to (5), as steps to combine.

R has the image's shape and is the same for all images. ``MAT(a)+MMT(m)`` is Eq. (4),
``MMT(m)+MAT(a)`` Eq. (5), ``Rise(r)+MMT(m)`` Eq. (3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pudica.clients.shields.disguises.steps import (
    ImageShape,
    Kind,
    Span,
    Step,
    Tensors,
    WrongKeyError,
    require_integer,
)
from pudica.models.randomness import Randomness


@dataclass(frozen=True)
class _Matrix(Step):
    """A step with a matrix R of whole numbers, uniform on 1 to ``max_v``."""

    max_v: int
    takes: ClassVar[Kind] = "integers"

    def __post_init__(self) -> None:
        require_integer(self, "max_v", "MAX_V", 1)

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:
        # 64 random bits modulo max_v: for 2³², uneven by one part in 2³².
        bits = np.frombuffer(randomness.bytes(8 * math.prod(shape)), np.uint64)
        values = (bits % np.uint64(self.max_v)).astype(np.int64).reshape(shape) + 1
        return {"R": torch.from_numpy(values)}

    def is_valid_key(self, key: Tensors) -> bool:
        return 1 <= int(key["R"].min()) <= int(key["R"].max()) <= self.max_v


@dataclass(frozen=True)
class Addition(_Matrix):
    """``A + R``, Eq. (1)."""

    name: ClassVar[str] = "MAT"

    def span(self, before: Span) -> Span:
        """Raise the lower end by 1 and the upper end by ``max_v``."""
        return Span(before.low + 1, before.high + self.max_v, "integers")

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Add R."""
        return images.add_(key["R"])

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Subtract R."""
        return images.sub_(key["R"])


@dataclass(frozen=True)
class Multiplication(_Matrix):
    """``A · R`` element by element, Eq. (2)."""

    name: ClassVar[str] = "MMT"

    def span(self, before: Span) -> Span:
        """Multiply the lower end by 1 and the upper end by ``max_v``."""
        return Span(before.low, before.high * self.max_v, "integers")

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Multiply by R."""
        return images.mul_(key["R"])

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Divide by R, which leaves no remainder if the key is right."""
        if images.remainder(key["R"]).any():
            raise WrongKeyError
        return images.div_(key["R"], rounding_mode="floor")


@dataclass(frozen=True)
class Rise(Step):
    """``A + RISE_V``, the same for all pixels, before a multiplication: Eq. (3)."""

    rise_v: int
    name: ClassVar[str] = "Rise"
    takes: ClassVar[Kind] = "integers"

    def __post_init__(self) -> None:
        require_integer(self, "rise_v", "RISE_V", 0)

    def span(self, before: Span) -> Span:
        """Raise both ends by ``rise_v``."""
        return Span(before.low + self.rise_v, before.high + self.rise_v, "integers")

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Add RISE_V."""
        return images.add_(self.rise_v)

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Subtract RISE_V."""
        return images.sub_(self.rise_v)
