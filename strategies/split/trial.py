"""What a cut model makes of images of a shape."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn

from pudica.models.errors import RequestError

TRIED = 2


class Outcome(NamedTuple):
    """The shape of one example's activation, and the number of classes."""

    activation: tuple[int, ...]
    classes: int


def try_model(front: nn.Module, back: nn.Module, shape: tuple[int, int, int]) -> Outcome:
    """Return what a model makes of images of a shape.

    Without their values, which takes no memory, unless the model's own code looks at them: then
    they are black.

    Raises
    ------
    RequestError
        The model does not accept them, or its output is no logits.
    """
    try:
        ghost_front, ghost_back = (copy.deepcopy(part).to("meta") for part in (front, back))
        return _try(ghost_front, ghost_back, torch.empty(TRIED, *shape, device="meta"))
    except RequestError as error:
        needs_values = isinstance(error.__cause__, NotImplementedError) or "meta" in str(error)
        if not needs_values:
            raise
    return _try(front, back, torch.zeros(TRIED, *shape))


@torch.no_grad()
def _try(front: nn.Module, back: nn.Module, value: torch.Tensor) -> Outcome:
    for what, module in (("front", front), ("back", back)):
        device = next((p.device for p in module.parameters()), value.device)
        was_training, given = module.training, tuple(value.shape)
        try:
            value = module.eval()(value.to(device))
        except Exception as error:
            raise RequestError(f"{what}: fails on {given}: {error}") from error
        finally:
            module.train(was_training)
        if not isinstance(value, torch.Tensor) or len(value) != TRIED:
            raise RequestError(f"{what}: must map {given} to a tensor of {TRIED} rows")
        if what == "front":
            activation = tuple(value.shape[1:])
    if value.ndim != 2 or value.shape[1] < 2:
        raise RequestError(
            f"back: must map activations {(TRIED, *activation)} to logits ({TRIED}, classes), got "
            f"{tuple(value.shape)}"
        )
    return Outcome(activation, int(value.shape[1]))
