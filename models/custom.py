"""Models from outside the zoo: a callable of the participant's own, or an exported program."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import nn

from pudica.models.architectures import TORCHVISION, ImageTask
from pudica.models.errors import RequestError
from pudica.models.files import absolute
from pudica.models.frozen import FrozenProgram

PREFIX = "custom:"
SUFFIX = ".pt2"
SOURCE = ".py"


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
        ``custom:FILE.py:callable``, ``custom:package.module:callable``, ``torchvision:name``, or
        a path that ends in ``.pt2``. The first two run code of that file or module, so they must
        come from whoever runs the process.
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
        from pudica.models.exported import load_program

        return load_program(Path(name), task)
    if name.startswith(TORCHVISION):
        from pudica.models import published  # slow to import

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
        from pudica.models import published  # slow to import

        published.known(name)
    else:
        _import(name)


def display_name(name: str) -> str:
    """Return the import path or torchvision's name; of a file its name without folder or ending."""
    if name.startswith(TORCHVISION):
        return name.partition(":")[2]
    if name.startswith(PREFIX):
        source, attribute = _split(name)
        return f"{Path(source).stem if _is_file(source) else source}:{attribute}"
    return Path(name).stem


def with_absolute_path(name: str, folder: Path = Path()) -> str:
    """Return a model's name with the file in it, if any, named as it holds in any directory.

    Parameters
    ----------
    folder : Path
        From which a relative path counts.
    """
    if name.endswith(SUFFIX):
        return str(absolute(folder / Path(name).expanduser()))
    if name.startswith(PREFIX) and _is_file(_split(name)[0]):
        source, attribute = _split(name)
        return f"{PREFIX}{absolute(folder / Path(source).expanduser())}:{attribute}"
    return name


ModelName = Annotated[str, AfterValidator(with_absolute_path)]
"""A model's name in settings. A relative path counts from where the settings are read."""


def describe(name: str) -> str:
    """Return one line on where the model comes from."""
    kinds = {PREFIX: "the participant's own model", TORCHVISION: "of torchvision"}
    own = (kind for prefix, kind in kinds.items() if name.startswith(prefix))
    kind = next(own, "exported program, frozen")
    return f"{display_name(name)}: {kind}"


def _split(name: str) -> tuple[str, str]:
    """Return the module or file of a ``custom:`` name, and what is called in it."""
    source, _, attribute = name.removeprefix(PREFIX).rpartition(":")
    return source, attribute


def _is_file(source: str) -> bool:
    return source.endswith(SOURCE)


def _import(name: str) -> Callable[..., Any]:
    source, attribute = _split(name)
    if not source or not attribute:
        raise RequestError(
            f"model '{name}' must be written custom:FILE.py:callable or "
            "custom:package.module:callable"
        )
    module = _load_file(name, Path(source)) if _is_file(source) else _import_module(name, source)
    make = getattr(module, attribute, None)
    if not callable(make):
        problem = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise RequestError(f"model '{name}': '{attribute}' {problem} in '{source}'")
    found: Callable[..., Any] = make
    return found


def _import_module(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ImportError as error:
        raise RequestError(
            f"model '{name}': cannot import '{source}' ({error}); "
            "it must be installed or on PYTHONPATH; a file is named as custom:./FILE.py:callable"
        ) from error


def _load_file(name: str, source: Path) -> ModuleType:
    """Run a file as a module of a name that nothing else has, once for each content."""
    path = absolute(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"model '{name}': {path}: {error.strerror}") from error
    digest = hashlib.sha256(str(path).encode() + content).hexdigest()
    own_name = f"custom_{digest[:16]}"
    if own_name in sys.modules:
        return sys.modules[own_name]
    spec = importlib.util.spec_from_file_location(own_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses and torch.fx look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[own_name]
        raise RequestError(
            f"model '{name}': {path} fails: {type(error).__name__}: {error}; what it imports must "
            "be installed or on PYTHONPATH"
        ) from error
    return module


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
