"""Try somebody's own model before it is trusted with a task."""

from __future__ import annotations

import torch
from torch import nn

from pudica.models.errors import RequestError


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
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(x)
    except Exception as error:
        raise RequestError(f"model: fails on images of shape {tuple(x.shape)}: {error}") from error
    finally:
        model.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RequestError(
            f"model: must map images {tuple(x.shape)} to logits ({len(x)}, classes), got {got}"
        )
    if logits.shape[1] <= int(y.max()):
        raise RequestError(
            f"model: tells {logits.shape[1]} classes apart, but a label is {int(y.max())}"
        )
    return int(logits.shape[1])
