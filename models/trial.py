"""Try somebody's own model before it is trusted with a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pudica.models.errors import RequestError


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Give each layer back its training or evaluation mode at the end."""
    before = {layer: layer.training for layer in model.modules()}
    try:
        yield
    finally:
        for layer, mode in before.items():
            layer.training = mode


def compute_logits(
    model: Callable[[torch.Tensor], Any],
    images: torch.Tensor,
    what: str,
    classes: int | None = None,
) -> torch.Tensor:
    """Return the logits (B, classes) of a model that may fail, or return something else.

    Raises RequestError, in which ``what`` names the model, also for another number of classes.
    """
    shape = format_shape(images.shape)
    try:
        logits = model(images)
    except Exception as error:
        raise RequestError(f"{what} fails on images of {shape}: {error}") from error
    fits = False
    got = type(logits).__name__
    if isinstance(logits, torch.Tensor):
        fits = logits.ndim == 2 and len(logits) == len(images)
        fits = fits and classes in (None, logits.shape[1])
        got = format_shape(logits.shape)
    if not fits:
        raise RequestError(
            f"{what} must map images of {shape} to logits of {len(images)}x{classes or 'classes'}, "
            f"got {got}"
        )
    return logits  # type: ignore[no-any-return]


def count_classes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Return how many classes a model tells apart, on images (B, C, H, W) as it is to see them.

    Raises RequestError if it fails, its output is no logits, or a label is none of its classes.
    """
    with keep_modes(model), torch.no_grad():
        classes = compute_logits(model.eval(), x, "model:").shape[1]
    if classes <= int(y.max()):
        raise RequestError(f"model: tells {classes} classes apart, but a label is {int(y.max())}")
    return classes


def format_shape(sizes: Sequence[int | torch.SymInt]) -> str:
    """Return a shape as ``2x3x32x32``; a dynamic size is ``any``."""
    return "x".join(str(size) if isinstance(size, int) else "any" for size in sizes)
