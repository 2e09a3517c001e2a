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
    kind: str = "images",
) -> torch.Tensor:
    """Return the logits (B, classes) of a model that may fail, or return something else.

    Raises RequestError, in which ``what`` names the model, also for another number of classes.
    """
    logits = _call(model, images, what, kind)
    fits = isinstance(logits, torch.Tensor) and logits.ndim == 2 and len(logits) == len(images)
    if not fits or classes not in (None, logits.shape[1]):
        raise RequestError(
            f"{what} must map {kind} of {format_shape(images.shape)} to logits of "
            f"{len(images)}x{classes or 'classes'}, got {_describe(logits)}"
        )
    return logits  # type: ignore[no-any-return]


def _call(model: Callable[[torch.Tensor], Any], x: torch.Tensor, what: str, kind: str) -> Any:
    try:
        return model(x)
    except Exception as error:
        raise RequestError(f"{what} fails on {kind} of {format_shape(x.shape)}: {error}") from error


def _describe(output: Any) -> str:
    return format_shape(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__


def format_shape(sizes: Sequence[int | torch.SymInt]) -> str:
    """Return a shape as ``2x3x32x32``; a dynamic size is ``any``."""
    return "x".join(str(size) if isinstance(size, int) else "any" for size in sizes)


def apply_layers(what: str, layers: nn.Module, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Return what layers make of examples in evaluation mode: a tensor with as many rows.

    Parameters
    ----------
    what, kind : str
        For messages: what the layers are, and what the examples are, such as ``images``.

    Raises
    ------
    RequestError
        The layers fail, or return something else.
    """
    with keep_modes(layers), torch.no_grad():
        layers.eval()
        output = _call(lambda x: layers(_move_to(layers, x)), x, f"{what}:", kind)
    if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != len(x):
        raise RequestError(
            f"{what}: must map {kind} of {format_shape(x.shape)} to as many rows, got "
            f"{_describe(output)}"
        )
    return output


def count_logits(what: str, layers: nn.Module, kind: str, x: torch.Tensor) -> int:
    """Return how many classes layers tell apart; as of :func:`apply_layers`."""
    with keep_modes(layers), torch.no_grad():
        logits = compute_logits(layers.eval(), _move_to(layers, x), f"{what}:", kind=kind)
    return logits.shape[1]


def _move_to(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.to(next((p.device for p in layers.parameters()), x.device))


def count_classes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Return how many classes a model tells apart, on some images.

    Parameters
    ----------
    x, y : Tensor
        Images (B, C, H, W) as the model is to see them, and their labels.

    Raises
    ------
    RequestError
        The model fails, its output is no logits, or a label is none of its classes.
    """
    classes = count_logits("model", model, "images", x)
    if classes <= int(y.max()):
        raise RequestError(f"model: tells {classes} classes apart, but a label is {int(y.max())}")
    return classes
