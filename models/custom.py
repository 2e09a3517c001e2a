"""Models from outside the zoo: a participant's own callable, or an exported program."""

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
from pudica.models.files import make_absolute, settings_folder
from pudica.models.frozen import FrozenProgram

PREFIX = "custom:"
SUFFIX = ".pt2"
SOURCE = ".py"


def is_custom(name: str) -> bool:
    """Tell whether a name is an import path, a torchvision model, or an exported program's path."""
    return name.startswith((PREFIX, TORCHVISION)) or name.endswith(SUFFIX)


def is_frozen(model: nn.Module) -> bool:
    """Tell whether a model can only be used, not trained.

    An exported program has no training mode and no weights to update, but gradients with respect
    to its input are available.
    """
    return isinstance(model, FrozenProgram)


def build(name: str, task: ImageTask) -> nn.Module:
    """Import or load a model and check that it fits the task.

    Parameters
    ----------
    name : str
        ``custom:FILE.py:callable``, ``custom:package.module:callable``, ``torchvision:name``, or
        a path that ends in ``.pt2``. The first two run code from that file or module, so they
        must come from whoever runs the process.
    task : ImageTask
        The images and classes that the model must fit.

    Raises
    ------
    RequestError
        If the model cannot be found, imported, called or loaded, or does not map this task's
        images to its logits.
    """
    if name.endswith(SUFFIX):
        # Imported late: it takes two seconds, which every worker would pay.
        from pudica.models.exported import load_program

        return load_program(Path(name), task)
    if name.startswith(TORCHVISION):
        from pudica.models import published  # slow to import

        model = published.build(name, task)
    else:
        model = _call_factory(name, _import_factory(name), task)
    _check_output(name, model, task)
    return model


def check_available(name: str) -> None:
    """Check that a model's file, module or name exists; raises what :func:`build` raises."""
    if name.endswith(SUFFIX):
        if not Path(name).is_file():
            raise RequestError(f"model '{name}': there is no such file")
    elif name.startswith(TORCHVISION):
        from pudica.models import published  # slow to import

        published.torchvision_name(name)
    else:
        _import_factory(name)


def display_name(name: str) -> str:
    """Return the import path or torchvision's name; for a file, its stem."""
    if name.startswith(TORCHVISION):
        return name.partition(":")[2]
    if name.startswith(PREFIX):
        source, attribute = _split_name(name)
        if _is_file(source):
            return f"{Path(source).stem}:{attribute}"
        return name.partition(":")[2]
    return Path(name).stem


def resolve_model_path(name: str, folder: Path = Path()) -> str:
    """Make the file path in a model's name absolute, if there is one.

    Parameters
    ----------
    folder : Path
        The folder that a relative path starts from.
    """
    if name.endswith(SUFFIX):
        return str(make_absolute(Path(name), folder))
    if name.startswith(PREFIX) and _is_file(_split_name(name)[0]):
        source, attribute = _split_name(name)
        return f"{PREFIX}{make_absolute(Path(source), folder)}:{attribute}"
    return name


ModelName = Annotated[
    str, AfterValidator(lambda name, info: resolve_model_path(name, settings_folder(info)))
]
"""A model's name in settings. A relative path starts from where the settings are read."""


def describe(name: str) -> str:
    """Return one line on where the model comes from."""
    origins = {PREFIX: "the participant's own model", TORCHVISION: "of torchvision"}
    matches = (origin for prefix, origin in origins.items() if name.startswith(prefix))
    origin = next(matches, "exported program, frozen")
    return f"{display_name(name)}: {origin}"


def _split_name(name: str) -> tuple[str, str]:
    """Return the module or file of a ``custom:`` name, and the callable's name."""
    source, _, attribute = name.removeprefix(PREFIX).rpartition(":")
    return source, attribute


def _is_file(source: str) -> bool:
    return source.endswith(SOURCE)


def _import_factory(name: str) -> Callable[..., Any]:
    source, attribute = _split_name(name)
    if not source or not attribute:
        raise RequestError(
            f"model '{name}' must be written custom:FILE.py:callable or "
            "custom:package.module:callable"
        )
    module = _load_file(name, Path(source)) if _is_file(source) else _import_module(name, source)
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        problem = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise RequestError(f"model '{name}': '{attribute}' {problem} in '{source}'")
    return factory


def _import_module(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ImportError as error:
        raise RequestError(
            f"model '{name}': cannot import '{source}' ({error}); "
            "it must be installed or on PYTHONPATH; a file is named as custom:./FILE.py:callable"
        ) from error


def _load_file(name: str, source: Path) -> ModuleType:
    """Run a file as a module under a unique name, once per content."""
    path = make_absolute(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"model '{name}': {path}: {error.strerror}") from error
    digest = hashlib.sha256(str(path).encode() + content).hexdigest()
    module_name = f"custom_{digest[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and torch.fx look up a class's module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise RequestError(
            f"model '{name}': {path} fails: {type(error).__name__}: {error}; what it imports must "
            "be installed or on PYTHONPATH"
        ) from error
    return module


def _call_factory(name: str, factory: Callable[..., Any], task: ImageTask) -> nn.Module:
    try:
        inspect.signature(factory).bind(**task._asdict())
    except TypeError as error:
        raise RequestError(
            f"model '{name}' must accept the keyword arguments num_classes, channels and "
            f"image_size: {error}"
        ) from error
    model = factory(**task._asdict())
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"model '{name}' must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _check_output(name: str, model: nn.Module, task: ImageTask) -> None:
    images = torch.zeros(2, task.channels, task.image_size, task.image_size)
    try:
        with torch.no_grad():
            # On a copy, so the model's modes and statistics stay as its author left them.
            logits = copy.deepcopy(model).eval()(images)
    except Exception as error:
        raise RequestError(
            f"model '{name}' fails on images of {_format_shape(images)}: {error}"
        ) from error
    expected = (2, task.num_classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        got = _format_shape(logits) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RequestError(
            f"model '{name}' must map images of {_format_shape(images)} to logits of "
            f"{'x'.join(map(str, expected))}, got {got}"
        )


def _format_shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
