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
from torch import nn

from pudica.models.architectures import TORCHVISION, ImageTask
from pudica.models.errors import RequestError
from pudica.models.files import make_absolute, resolve_with
from pudica.models.trial import compute_logits

PREFIX = "custom:"
SUFFIX = ".pt2"
SOURCE = ".py"


class FrozenProgram(nn.Module):
    """An exported program: its mode is fixed, and it has no weights to train."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program.requires_grad_(False)
        self.training = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, side, side) to logits (batch, num_classes)."""
        logits: torch.Tensor = self.program(images)
        return logits

    def train(self, mode: bool = True) -> FrozenProgram:  # noqa: ARG002
        """Do nothing: the mode was fixed at export."""
        return self


def is_custom(name: str) -> bool:
    """Tell whether a name is an import path, a torchvision model, or an exported program's path."""
    return name.startswith((PREFIX, TORCHVISION)) or name.endswith(SUFFIX)


def is_frozen(model: nn.Module) -> bool:
    """Tell whether a model can't be trained: an exported program has gradients for its input."""
    return isinstance(model, FrozenProgram)


def build(name: str, task: ImageTask) -> nn.Module:
    """Import or load a model and check that it fits the task.

    Parameters
    ----------
    name : str
        ``custom:FILE.py:callable``, ``custom:package.module:callable``, ``torchvision:name``, or
        a path that ends in ``.pt2``. The first two run code from that file or module, so they
        must come from whoever runs the process.

    Raises RequestError if the model cannot be found, imported, called or loaded, or does not map
    this task's images to its logits.
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

    def run_copy(images: torch.Tensor) -> Any:
        # So the model's modes and statistics stay as its author left them.
        return copy.deepcopy(model).eval()(images)

    images = torch.zeros(2, task.channels, *task.sides)
    with torch.no_grad():
        compute_logits(run_copy, images, f"model '{name}'", task.num_classes)
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
    if name.endswith(SUFFIX):
        return Path(name).stem
    source, attribute = _split_name(name)
    if name.startswith(PREFIX) and source.endswith(SOURCE):
        return f"{Path(source).stem}:{attribute}"
    return name.partition(":")[2]


def resolve_model_path(name: str, folder: Path = Path()) -> str:
    """Make the file path in a model's name absolute, starting from ``folder``, if there is one."""
    if name.endswith(SUFFIX):
        return str(make_absolute(Path(name), folder))
    source, attribute = _split_name(name)
    if name.startswith(PREFIX) and source.endswith(SOURCE):
        return f"{PREFIX}{make_absolute(Path(source), folder)}:{attribute}"
    return name


ModelName = Annotated[str, resolve_with(resolve_model_path)]
"""A model's name in settings. A relative path starts from where the settings are read."""


def describe_origin(name: str) -> str:
    """Return in a few words where the model comes from."""
    if name.endswith(SUFFIX):
        return "exported program, frozen"
    return "of torchvision" if name.startswith(TORCHVISION) else "the participant's own model"


def _split_name(name: str) -> tuple[str, str]:
    """Return the module or file of a ``custom:`` name, and the callable's name."""
    source, _, attribute = name.removeprefix(PREFIX).rpartition(":")
    return source, attribute


def _import_factory(name: str) -> Callable[..., Any]:
    source, attribute = _split_name(name)
    if not source or not attribute:
        raise RequestError(
            f"model '{name}' must be written custom:FILE.py:callable or "
            "custom:package.module:callable"
        )
    is_file = source.endswith(SOURCE)
    module = _load_file(name, Path(source)) if is_file else _import_module(name, source)
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
