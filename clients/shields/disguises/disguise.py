"""Disguise images under a key, and restore them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pudica.clients.shields.base import Guarantee
from pudica.clients.shields.disguises.key import Key
from pudica.clients.shields.disguises.notation import compute_spans
from pudica.clients.shields.disguises.steps import Span, Step, Tensors, WrongKeyError
from pudica.models.errors import RequestError

CHUNK_VALUES = 2**18
"""Values processed together: as many as fit a core's cache, and enough to use two threads."""

UNDONE = (
    "an obfuscation: the same for every image under a key, so who sees enough images, or some "
    "of them plain, can undo it"
)
LOSES = "an obfuscation: what it removes can't be recovered, what it leaves everybody can see"


class KeyedDisguise:
    """Disguises integer images exactly, step by step.

    Parameters
    ----------
    key : Key

    Attributes
    ----------
    span : Span
        The range of disguised values.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        steps = key.steps
        self._spans = compute_spans(steps)
        self._steps = [(step, self._cast_key(step, key.of(n))) for n, step in enumerate(steps)]

    @property
    def span(self) -> Span:
        """The range and type of disguised values."""
        return self._spans[-1]

    @property
    def lossy_steps(self) -> list[str]:
        """The steps that can't be undone, in the notation."""
        return list_lossy_steps([step for step, _ in self._steps])

    def _cast_key(self, step: Step, key: Tensors) -> Tensors:
        """Return a step's part of the key, with R in the type of the values it is applied to."""
        if step.takes == "integers":
            return {name: tensor.to(self.span.dtype) for name, tensor in key.items()}
        return key

    def protect(self, images: torch.Tensor) -> torch.Tensor:
        """Return disguised images; nothing is rounded, and the input is not changed.

        Parameters
        ----------
        images : uint8 tensor of shape (B, C, H, W)

        Returns
        -------
        Tensor of shape (B, C, H, W)
            uint8, int32, int64 or float32, as given by :attr:`span`.

        Raises
        ------
        RequestError
            If the images have another type or shape.
        """
        self._check(images, torch.uint8)
        out = torch.empty(images.shape, dtype=self.span.dtype)
        for start in range(0, len(images), self._chunk_size):
            part = slice(start, start + self._chunk_size)
            self._protect(images[part], out[part])
        return out

    @property
    def _chunk_size(self) -> int:
        channels, height, width = self.key.shape
        return max(1, CHUNK_VALUES // (channels * height * width))

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

        Raises
        ------
        RequestError
            If a step can't be undone, the type or shape is wrong, or the images were disguised
            with another key. With ``Kiya`` a wrong key goes unnoticed: any key gives some pixels.
        """
        self.require_invertible()
        self._check(disguised, self.span.dtype)
        values = disguised.clone()
        try:
            return self._undo_steps(values)
        except WrongKeyError:
            raise RequestError(
                f"these images were not disguised with the key {self.key.fingerprint}: undone with "
                "it they are not pixels"
            ) from None

    def require_invertible(self) -> None:
        """Raise RequestError if a step can't be undone."""
        require_invertible([step for step, _ in self._steps])

    @property
    def loss_description(self) -> str:
        """Which steps can't be undone, in words; empty if all can."""
        return describe_loss(self.lossy_steps)

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
                f"images are {_format_shape(shape)}, the key {self.key.fingerprint} is for "
                f"{_format_shape(self.key.shape)}"
            )

    def guarantee(self) -> Guarantee:
        """Return that there is no guarantee, and why."""
        return obfuscation_guarantee(self.lossy_steps)


def require_dtype(images: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise RequestError if images have another type, or lie on another device than the key."""
    if images.dtype != dtype:
        raise RequestError(
            f"images must be {dtype}, are {images.dtype}"
            + ("; scale floats to whole numbers 0 to 255" if dtype == torch.uint8 else "")
        )
    if images.device.type != "cpu":
        raise RequestError(f"images must be on the CPU, are on {images.device}")


def list_lossy_steps(steps: Iterable[Step]) -> list[str]:
    """Return the steps that can't be undone, in the notation."""
    return [str(step) for step in steps if not step.is_invertible]


def require_invertible(steps: Sequence[Step]) -> None:
    """Raise RequestError if a step can't be undone."""
    if lossy := list_lossy_steps(steps):
        raise RequestError(f"{'+'.join(map(str, steps))} can't be undone: {describe_loss(lossy)}")


def describe_loss(lossy: Sequence[str]) -> str:
    """Return in words that these steps lose something; empty if there are none."""
    keeps = "keeps" if len(lossy) == 1 else "keep"
    return f"{' and '.join(lossy)} {keeps} less than there was" if lossy else ""


def obfuscation_guarantee(lossy: Sequence[str]) -> Guarantee:
    """Return that a disguise has no guarantee, and why."""
    return Guarantee("record", None, reasons=(LOSES if lossy else UNDONE,))


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
