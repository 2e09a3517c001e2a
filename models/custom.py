"""Models from outside the zoo: a callable of the participant's own, or an exported program."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.architectures import TORCHVISION, ImageTask
from models.errors import RequestError
from models.frozen import FrozenProgram

PREFIX = "custom:"
SUFFIX = ".pt2"


def is_custom(name: str) -> bool:
    """Tell whether a model's name is an import path, torchvision's, or a program's path."""
    return name.startswith((PREFIX, TORCHVISION)) or name.endswith(SUFFIX)


def is_frozen(model: nn.Module) -> bool:
    """Tell whether a model can only be used, not trained.

    An exported program has neither a training mode nor weights to update; gradients with
    respect to its input are available all the same.
    """
    return isinstance(model, FrozenProgram)


def build(name: str, task: ImageTask) -> nn.Module:
    """Import or load a model and see that it fits.

    Parameters
    ----------
    name : str
        ``custom:package.module:callable``, ``torchvision:name``, or a path that ends in
        ``.pt2``. The first runs code of that module, so it must come from whoever runs the
        process.
    task : ImageTask
        The images and classes that it must fit.

    Raises
    ------
    RequestError
        If it cannot be found, imported, called or loaded, or does not map images of this task
        to its logits.
    """
    if name.endswith(SUFFIX):
        # Two seconds to import, which every worker would pay.
        from models.exported import load_program

        return load_program(Path(name), task)
    if name.startswith(TORCHVISION):
        from models import published  # slow to import

        model = published.build(name, task)
    else:
        model = _call(name, _import(name), task)
    _check_output(name, model, task)
    return model


def check_there(name: str) -> None:
    """See that a model's file, module or name is there; errors as of :func:`build`."""
    if name.endswith(SUFFIX):
        if not Path(name).is_file():
            raise RequestError(f"model '{name}': there is no such file")
    elif name.startswith(TORCHVISION):
        from models import published  # slow to import

        published.known(name)
    else:
        _import(name)


def display_name(name: str) -> str:
    """Return the import path or torchvision's name, or the file's name without its ending."""
    if name.startswith((PREFIX, TORCHVISION)):
        return name.partition(":")[2]
    return Path(name).stem


def describe(name: str) -> str:
    """Return one line on where the model comes from."""
    kinds = {PREFIX: "the participant's own model", TORCHVISION: "of torchvision"}
    own = (kind for prefix, kind in kinds.items() if name.startswith(prefix))
    kind = next(own, "exported program, frozen")
    return f"{display_name(name)}: {kind}"


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.removeprefix(PREFIX).partition(":")
    if not module_name or not attribute:
        raise RequestError(f"model '{name}' must be written custom:package.module:callable")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RequestError(
            f"model '{name}': cannot import '{module_name}' ({error}); "
            "it must be installed or on PYTHONPATH"
        ) from error
    make = getattr(module, attribute, None)
    if not callable(make):
        problem = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise RequestError(f"model '{name}': '{attribute}' {problem} in module '{module_name}'")
    found: Callable[..., Any] = make
    return found


def _call(name: str, make: Callable[..., Any], task: ImageTask) -> nn.Module:
    try:
        inspect.signature(make).bind(**task._asdict())
    except TypeError as error:
        raise RequestError(
            f"model '{name}' must accept the keyword arguments num_classes, channels and "
            f"image_size: {error}"
        ) from error
    model = make(**task._asdict())
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"model '{name}' must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _check_output(name: str, model: nn.Module, task: ImageTask) -> None:
    images = torch.zeros(2, task.channels, task.image_size, task.image_size)
    try:
        with torch.no_grad():
            # On a copy: the modes and statistics of the model stay as its author left them.
            logits = copy.deepcopy(model).eval()(images)
    except Exception as error:
        raise RequestError(
            f"model '{name}' fails on images of {_shape(images)}: {error}"
        ) from error
    expected = (2, task.num_classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        got = _shape(logits) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RequestError(
            f"model '{name}' must map images of {_shape(images)} to logits of "
            f"{'x'.join(map(str, expected))}, got {got}"
        )


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
