"""Disguises as transforms of torchvision: in a data set's own pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pudica.clients.shields.base import Guarantee
from pudica.clients.shields.disguises.disguise import (
    KeyedDisguise,
    explain_no_guarantee,
    require_dtype,
    require_invertible,
)
from pudica.clients.shields.disguises.key import Key
from pudica.clients.shields.disguises.notation import compute_spans, format_notation, parse_notation
from pudica.clients.shields.disguises.steps import ImageShape, Span
from pudica.models.errors import RequestError
from pudica.models.randomness import SystemGenerator


class _ImageTransform(v2.Transform):
    """A transform of images and videos; boxes, masks and labels pass through unchanged."""

    _transformed_types = (functional.is_pure_tensor, tv_tensors.Image, tv_tensors.Video, PILImage)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ARG002
        if isinstance(inpt, PILImage):
            raise RequestError(
                f"{type(self).__name__}: takes tensors, got a PIL image; put "
                "torchvision.transforms.v2.PILToTensor() before it"
            )
        if inpt.ndim < 3:
            raise RequestError(
                f"{type(self).__name__}: takes images (C, H, W) or batches (B, C, H, W), got a "
                f"tensor of shape {tuple(inpt.shape)}"
            )
        images = inpt.as_subclass(torch.Tensor)
        count = math.prod(images.shape[:-3])
        out = self._apply(images.reshape(count, *images.shape[-3:])).reshape(images.shape)
        return tv_tensors.wrap(out, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else out

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Disguise(_ImageTransform):
    """Disguises uint8 images under a key; a transform for anybody's ``Compose``.

    It is an obfuscation: see :meth:`guarantee`. Its values are whole numbers or floats within
    :attr:`span`, not pixels. Convert them by ``v2.ToDtype(torch.float32)``, without ``scale``, and
    normalise them by their own statistics.

    Parameters
    ----------
    notation : str or Key
        The steps, such as ``MAT(256)+MMT(10)``; a key knows those that it is for.
    key : Key, str or Path, optional
        A key or its file. By default a fresh secret key is drawn for the shape of the first image.
        It is lost with this object unless it is saved: ``disguise.key.save("my.key")``. It is no
        part of a ``state_dict``.

    Raises
    ------
    RequestError
        The notation is unknown, or the key is for another one or can't be read.
    """

    def __init__(self, notation: str | Key, key: Key | str | Path | None = None) -> None:
        super().__init__()
        if isinstance(notation, Key):
            if key is not None:
                raise RequestError("Disguise: two keys; give a notation and a key, or a key alone")
            notation, key = notation.notation, notation
        steps = parse_notation(notation)
        self.notation = format_notation(steps)
        self.span: Span = compute_spans(steps)[-1]
        self._keyed = None if key is None else KeyedDisguise(self._load(key))

    def _load(self, key: Key | str | Path) -> Key:
        if not isinstance(key, Key | str | Path):
            raise RequestError(
                f"Disguise: key must be a Key, a path or None, is {type(key).__name__}"
            )
        found = key if isinstance(key, Key) else Key.load(Path(key).expanduser())
        if found.notation != self.notation:
            raise RequestError(
                f"Disguise: the key {found.fingerprint} is for {found.notation}, not for "
                f"{self.notation}"
            )
        return found

    @property
    def has_key(self) -> bool:
        """Whether it has a key, given or drawn."""
        return self._keyed is not None

    @property
    def key(self) -> Key:
        """The key; RequestError if none was given and no image has come yet."""
        return self.keyed.key

    @property
    def keyed(self) -> KeyedDisguise:
        """What computes the disguise; errors as of :attr:`key`."""
        if self._keyed is None:
            raise RequestError(
                f"Disguise: {self.notation} has no key yet: disguise an image, or bind(shape), "
                "which draw one"
            )
        return self._keyed

    def bind(self, shape: ImageShape) -> Disguise:
        """Draw a fresh secret key for images of one shape, unless there is a key; return self.

        RequestError if the steps do not fit that shape, or there is a key for another one.
        """
        if self._keyed is None:
            if get_worker_info() is not None:
                raise RequestError(
                    "Disguise: each worker of a data loader would draw a key of its own; give a "
                    "key, or call disguise.bind(shape) before the loader starts"
                )
            key = Key.new(self.notation, tuple(shape), SystemGenerator())  # type: ignore[arg-type]
            self._keyed = KeyedDisguise(key)
        else:
            self._keyed.require_shape(shape)
        return self

    def inverse(self) -> v2.Transform:
        """Return the transform that undoes this one; RequestError if a step can't be undone."""
        return Restoration(self)

    def guarantee(self) -> Guarantee:
        """Return that there is no guarantee, and why."""
        return explain_no_guarantee(parse_notation(self.notation))

    def extra_repr(self) -> str:
        """Return notation and fingerprint, never the key."""
        return f"{self.notation!r}, key={self.key.fingerprint if self.has_key else None}"

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        if self._keyed is None:
            require_dtype(images, torch.uint8)
            channels, height, width = images.shape[1:]
            self.bind((channels, height, width))
        return self.keyed.protect(images)


class Restoration(_ImageTransform):
    """Undoes a disguise, by the key it has by then: values of its span become uint8 pixels."""

    def __init__(self, disguise: Disguise) -> None:
        super().__init__()
        require_invertible(parse_notation(disguise.notation))
        self.disguise = disguise

    def _apply(self, images: torch.Tensor) -> torch.Tensor:
        return self.disguise.keyed.restore(images)
