"""The interface of the steps of an image disguise: functions of images under a key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch

from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness

ImageShape = tuple[int, int, int]
Tensors = dict[str, torch.Tensor]
Kind = Literal["pixels", "integers", "numbers"]

LARGEST = 2**53
"""Whole numbers below it are exact in a float64, and so are sums of a few of them."""


@dataclass(frozen=True)
class Span:
    """The range and kind of the values between two steps.

    Attributes
    ----------
    low, high : int
        The smallest and the largest possible value.
    kind : {"pixels", "integers", "numbers"}
        Whole numbers 0 to 255, any whole numbers, or floats.
    """

    low: int = 0
    high: int = 255
    kind: Kind = "pixels"

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type that holds all of them exactly."""
        if self.kind == "numbers":
            return torch.float32
        if self.kind == "pixels":
            return torch.uint8
        return torch.int32 if self.high < 2**31 else torch.int64

    @property
    def storage_dtype(self) -> torch.dtype:
        """The smallest type to store or send them in."""
        return torch.int16 if self.kind == "integers" and self.high < 2**15 else self.dtype

    @property
    def storage_dtype_name(self) -> str:
        """The name of :attr:`storage_dtype`, valid in NumPy too."""
        return str(self.storage_dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Step(ABC):
    """One step of a disguise; its fields are the settings in parentheses in the notation."""

    name: ClassVar[str]
    takes: ClassVar[Kind] = "pixels"
    """The kind of values that the step takes; pixels count as integers, too."""

    @abstractmethod
    def span(self, before: Span) -> Span:
        """Return the range of the values after this step."""

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Draw the step's part of a key, if it needs one; RequestError if the shape doesn't fit."""
        return {}

    def is_valid_key(self, key: Tensors) -> bool:  # noqa: ARG002
        """Tell whether :meth:`draw` could have drawn these values; the shapes are right."""
        return True

    @abstractmethod
    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Return the images (B, C, H, W) after this step; may change its input."""

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Return the images before this step; may change its input.

        WrongKeyError if they can't have been disguised with that key.
        """
        raise NotImplementedError(f"{self.name} can't be undone")

    @property
    def is_invertible(self) -> bool:
        """Whether :meth:`undo` is possible with these settings."""
        return True

    def __str__(self) -> str:
        shown = []
        for position, field in enumerate(fields(self)):
            if (value := getattr(self, field.name)) != field.default:
                shown.append(f"{field.name}={value}" if position else str(value))
        return f"{self.name}({', '.join(shown)})" if shown else self.name


class WrongKeyError(Exception):
    """The images were disguised with another key."""


def require_integer(step: Step, field: str, what: str, least: int) -> None:
    """Make a setting an int; raise RequestError if it is no whole number, or out of range."""
    value = getattr(step, field)
    if not float(value).is_integer() or not least <= value < LARGEST:
        raise RequestError(
            f"{step.name}: {what} must be a whole number of at least {least} and below 2^53, is "
            f"{value:g}"
        )
    object.__setattr__(step, field, int(value))
