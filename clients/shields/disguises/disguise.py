"""Disguise images under a key, and restore them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pudica.clients.shields.base import REMOVES, Guarantee
from pudica.clients.shields.disguises.key import Key
from pudica.clients.shields.disguises.notation import compute_spans, format_notation
from pudica.clients.shields.disguises.steps import Span, Step, Tensors, WrongKeyError
from pudica.models.errors import RequestError

CHUNK_VALUES = 2**18
"""Values processed together: as many as fit a core's cache, and enough to use two threads."""

UNDONE = (
    "an obfuscation: the same for every image under a key, so who sees enough images, or some "
    "of them plain, can undo it"
)


class KeyedDisguise:
    """Disguises integer images exactly, step by step, under a key."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._spans = compute_spans(key.steps)
        self._steps = [(step, self._cast_key(step, key.of(n))) for n, step in enumerate(key.steps)]

    @property
    def span(self) -> Span:
        """The range and type of disguised values."""
        return self._spans[-1]

    def _cast_key(self, step: Step, key: Tensors) -> Tensors:
        """Return a step's part of the key, with R in the type of the values it is applied to."""
        if step.takes == "integers":
            return {name: tensor.to(self.span.dtype) for name, tensor in key.items()}
        return key

    def protect(self, images: torch.Tensor) -> torch.Tensor:
        """Return disguised images; nothing is rounded, and the input is not changed.

        Images are uint8, (B, C, H, W), or RequestError; the result has the type of :attr:`span`.
        """
        self._check(images, torch.uint8)
        out = torch.empty(images.shape, dtype=self.span.dtype)
        size = max(1, CHUNK_VALUES // math.prod(self.key.shape))
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            self._protect(images[part], out[part])
        return out

    def _protect(self, images: torch.Tensor, out: torch.Tensor) -> None:
        values = images
        for step, key in self._steps:
            if step.takes == "integers" and values is not out:
                values = out.copy_(values)  # in place from here on
            values = step.apply(values, key)
        if values is not out:
            out.copy_(values)

    def restore(self, disguised: torch.Tensor) -> torch.Tensor:
        """Return the original images, uint8 of shape (B, C, H, W).

        RequestError if a step can't be undone, the type or shape is wrong, or the images were
        disguised with another key. With ``Kiya`` a wrong key goes unnoticed: any key gives some
        pixels.
        """
        require_invertible(self.key.steps)
        self._check(disguised, self.span.dtype)
        try:
            return self._undo_steps(disguised.clone())
        except WrongKeyError:
            raise RequestError(
                f"these images were not disguised with the key {self.key.fingerprint}: undone with "
                "it they are not pixels"
            ) from None

    def _undo_steps(self, values: torch.Tensor) -> torch.Tensor:
        stages = list(zip(self._steps, self._spans[:-1], strict=True))
        for (step, key), before in reversed(stages):
            values = step.undo(values, key)
            if before.kind == "pixels" and values.dtype != torch.uint8:
                if values.numel() and not 0 <= int(values.min()) <= int(values.max()) <= 255:
                    raise WrongKeyError
                values = values.to(torch.uint8)
        return values

    def _check(self, images: torch.Tensor, dtype: torch.dtype) -> None:
        require_dtype(images, dtype)
        # Images of another number of dimensions have another shape, too.
        self.require_shape(images.shape[1:] if images.ndim > 1 else ())

    def require_shape(self, shape: Sequence[int]) -> None:
        """Raise RequestError if the key is not for images of this shape."""
        if tuple(shape) != self.key.shape:
            raise RequestError(
                f"images are {'x'.join(map(str, shape))}, the key {self.key.fingerprint} is for "
                f"{'x'.join(map(str, self.key.shape))}"
            )

    def guarantee(self) -> Guarantee:
        """Return that there is no guarantee, and why."""
        return explain_no_guarantee(self.key.steps)


def require_dtype(images: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise RequestError if images have another type, or lie on another device than the key."""
    if images.dtype != dtype:
        raise RequestError(
            f"images must be {dtype}, are {images.dtype}"
            + ("; scale floats to whole numbers 0 to 255" if dtype == torch.uint8 else "")
        )
    if images.device.type != "cpu":
        raise RequestError(f"images must be on the CPU, are on {images.device}")


def require_invertible(steps: tuple[Step, ...]) -> None:
    """Raise RequestError if a step can't be undone."""
    if lost := describe_loss(steps):
        raise RequestError(f"{format_notation(steps)} can't be undone: {lost}")


def describe_loss(steps: tuple[Step, ...]) -> str:
    """Return in words which steps can't be undone; empty if all can."""
    lossy = [str(step) for step in steps if not step.is_invertible]
    keep = "keeps" if len(lossy) == 1 else "keep"
    return f"{' and '.join(lossy)} {keep} less than there was" if lossy else ""


def explain_no_guarantee(steps: tuple[Step, ...]) -> Guarantee:
    """Return that a disguise has no guarantee, and why."""
    return Guarantee("record", None, reasons=(REMOVES if describe_loss(steps) else UNDONE,))
