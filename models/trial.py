"""Try somebody's own model before it is trusted with a task."""

from __future__ import annotations

import torch
from torch import nn

from pudica.models.errors import RequestError


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
    device = next((p.device for p in layers.parameters()), x.device)
    was_training, shape = layers.training, tuple(x.shape)
    try:
        with torch.no_grad():
            output = layers.eval()(x.to(device))
    except Exception as error:
        raise RequestError(f"{what}: fails on {kind} of shape {shape}: {error}") from error
    finally:
        layers.train(was_training)
    if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != len(x):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise RequestError(f"{what}: must map {kind} {shape} to as many rows, got {got}")
    return output


def count_logits(what: str, layers: nn.Module, kind: str, x: torch.Tensor) -> int:
    """Return how many classes layers tell apart; as of :func:`apply_layers`."""
    logits = apply_layers(what, layers, kind, x)
    if logits.ndim != 2:
        raise RequestError(
            f"{what}: must map {kind} {tuple(x.shape)} to logits ({len(x)}, classes), got "
            f"{tuple(logits.shape)}"
        )
    return int(logits.shape[1])


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
