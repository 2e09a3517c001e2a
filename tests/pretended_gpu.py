"""A GPU that is only pretended: its tensors lie in memory, and may not meet those of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from pudica.models.compute import Compute

GPU = torch.device("cuda:0")
INDEXING = ("__getitem__", "__setitem__")
CROSSING = ("copy_", "_has_compatible_shallow_copy_type", "set_data", "__set__")
"""What may see both sides: a copy, and what ``Module.to`` asks and does."""


class Placed(torch.Tensor):
    """A tensor on the pretended GPU."""

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = self.detach().as_subclass(torch.Tensor).clone().as_subclass(Placed)
        return _as(copied, self)


def _as(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    tensor.requires_grad_(model.requires_grad)
    if isinstance(model, torch.nn.Parameter):
        tensor._is_param = True
    return tensor


class _Devices(TorchFunctionMode):
    """Follows which tensors are where, and raises where PyTorch would with a GPU."""

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        values = tree_flatten((args, kwargs))[0]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        placed = any(isinstance(tensor, Placed) for tensor in tensors)
        name = getattr(func, "__name__", "")
        if any(isinstance(value, fx.Proxy) for value in values):
            return func(*args, **kwargs)
        if func == torch.Tensor.device.__get__:
            return GPU if placed else func(*args)
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor)
        if name == "to" and any(isinstance(value, torch.device | str) for value in values):
            return _moved(func, args, kwargs)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return func(*args, **{**kwargs, "device": "cpu"}).as_subclass(Placed)
        if placed:
            _check(name, args, tensors)
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
        own = {id(tensor) for tensor in tensors}
        return tree_map(lambda value: _marked(value, own), made) if placed else made


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a tensor where it was asked for, in the layout it was asked for."""
    devices = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.device | str)]
    there = torch.device(devices[0]).type == "cuda"
    plain = args[0].detach() if isinstance(args[0], torch.nn.Parameter) else args[0]
    plain = plain.as_subclass(torch.Tensor)
    rest = ["cpu" if there and v in devices else v for v in args[1:]]
    named = {k: "cpu" if there and v in devices else v for k, v in kwargs.items()}
    moved = func(plain, *rest, **named)
    return moved.as_subclass(Placed) if there else moved


def _check(name: str, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    if name in ("numpy", "__array__", "tolist"):
        raise TypeError("can't convert a tensor of a GPU to numpy; use .cpu()")
    alone = [tensor for tensor in tensors if not isinstance(tensor, Placed) and tensor.dim()]
    if name in INDEXING:  # by positions that lie on the CPU: allowed
        alone = [] if isinstance(args[0], Placed) else [args[0]]
    if alone and name not in CROSSING:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def _marked(value: Any, own: set[int]) -> Any:
    new = isinstance(value, torch.Tensor) and id(value) not in own
    return value.as_subclass(Placed) if new else value


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything that is computed be computed on a GPU, as far as anybody can tell."""

    def there(self: Compute, config: Any) -> None:
        self.config, self.device = config, GPU

    monkeypatch.setattr(Compute, "__init__", there)
    # Else a parameter would stay on the CPU, and only its values be of the GPU.
    future: Callable[[bool], None] = torch.__future__.set_overwrite_module_params_on_conversion
    future(True)
    try:
        with _Devices():
            yield
    finally:
        future(False)
