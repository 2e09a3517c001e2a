"""A cut model as a strategy's arrays: ``front.…`` and ``back.…``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from pudica.models.errors import RequestError

FRONT, BACK = "front", "back"


def _state(front: nn.Module, back: nn.Module) -> dict[str, torch.Tensor]:
    parts = {FRONT: front, BACK: back}
    return {f"{p}.{k}": v for p, module in parts.items() for k, v in module.state_dict().items()}


def model_arrays(front: nn.Module, back: nn.Module) -> ArrayRecord:
    """Return parameters and buffers of both parts, by name."""
    found = _state(front, back).items()
    # Copies: what is returned does not change while the model does.
    return ArrayRecord({name: Array(value.detach().cpu().numpy().copy()) for name, value in found})


@torch.no_grad()
def load_arrays_into(
    front: nn.Module, back: nn.Module, arrays: ArrayRecord, parts: Iterable[str] = (FRONT, BACK)
) -> None:
    """Copy arrays into a model.

    Parameters
    ----------
    parts : iterable of str
        Of the model; arrays of others are ignored.

    Raises
    ------
    RequestError
        A key that is missing or superfluous, or an array of another shape, by name.
    """
    own = _state(front, back)
    if odd := sorted(set(own) ^ set(arrays)):
        what = "missing" if odd[0] in own else "not of this model"
        raise RequestError(
            f"arrays: '{odd[0]}' is {what}; a model's are called {', '.join(list(own)[:4])}, …"
        )
    for name, tensor in own.items():
        given = arrays[name]
        if tuple(given.shape) != tuple(tensor.shape):
            raise RequestError(
                f"arrays: '{name}' of shape {tuple(given.shape)}, the model's is "
                f"{tuple(tensor.shape)}"
            )
    for name, tensor in own.items():
        if name.partition(".")[0] in parts:
            tensor.copy_(torch.from_numpy(arrays[name].numpy().copy()))


def fingerprint(front: nn.Module, back: nn.Module) -> str:
    """Return what tells a model from others by its arrays' names and shapes."""
    shapes = [(name, tuple(value.shape)) for name, value in _state(front, back).items()]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest()
