"""The registry of architectures: names, limits, and building a model from a name and a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import nn

from pudica.models import custom
from pudica.models.architectures import ImageSize, ImageTask
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.randomness import temporary_seed

LARGEST_SIDE = 224
CHANNELS = (1, 3)


class Architecture(NamedTuple):
    """One entry of the registry: published spelling, summary, smallest image side, constructor."""

    display: str
    summary: str
    minimum_side: int
    make: Callable[[ImageTask], nn.Module]


def build(
    name: str, *, num_classes: int, channels: int = 3, image_size: ImageSize = 32, seed: int = 0
) -> nn.Module:
    """Build a classifier with freshly drawn weights, in training mode.

    It maps floats (batch, channels, height, width) to logits (batch, num_classes).

    Parameters
    ----------
    name : str
        A name from :func:`names` in any usual spelling, ``custom:package.module:callable``,
        ``torchvision:name``, or the path of an exported program that ends in ``.pt2`` (which
        brings its own weights and is frozen; see :func:`pudica.models.custom.is_frozen`).
    num_classes, channels : int
        At least 2; 1 (grey) or 3 (colour).
    image_size : int or tuple of int, int
        The side of square images, or height and width; at most 224 pixels.
    seed : int
        Determines the weights. The global generators are left as they were.

    Raises RequestError if the name is unknown or the architecture does not fit these images.
    """
    task = ImageTask(num_classes, channels, image_size)
    _validate_task(name, task)
    with temporary_seed(seed):
        model = _find_architecture(name).make(task)
    if custom.is_custom(name):
        return model  # in its own layout, since its code may depend on it
    # Channels-last is faster on the CPU for most models, in training too: docs/performance.md.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_for(
    name: str, shape: tuple[int, int, int], *, num_classes: int, seed: int = 0
) -> nn.Module:
    """Build a classifier of images (C, H, W); otherwise as :func:`build`."""
    channels, height, width = shape
    size = height if height == width else (height, width)
    return build(name, num_classes=num_classes, channels=channels, image_size=size, seed=seed)


def check_available(name: str) -> None:
    """Raise RequestError if a name denotes no model that can be found, whatever the task."""
    if custom.is_custom(name):
        custom.check_available(name)
    else:
        canonical_name(name)


def freeze(name: str, model: nn.Module) -> nn.Module:
    """Return the named model, trained, in evaluation mode with gradients for its input only.

    In the zoo's models batch norm is folded into the preceding layer where possible, which gives
    the same function up to rounding in less time; then a copy is returned. A custom model is only
    put into that mode, since its code may do things that a trace would not show.
    """
    from torch.fx.experimental.optimization import fuse  # slow to import

    model.requires_grad_(False).eval()
    return model if custom.is_custom(name) else fuse(model)


def names() -> list[str]:
    """Return all names of the zoo, sorted by family and size."""
    return list(_ZOO)


def names_without_buffers() -> list[str]:
    """Return the zoo's models that have no buffers, such as batch norm's running statistics."""
    found = []
    for name, entry in _ZOO.items():
        with torch.device("meta"):
            model = entry.make(ImageTask(10, 3, max(32, entry.minimum_side)))
        if not any(True for _ in model.buffers()):
            found.append(name)
    return found


def canonical_name(name: str) -> str:
    """Return the zoo's own spelling: ``"VGG16"`` gives ``"vgg-16"``; custom names as they are.

    Raises RequestError if there is no such model.
    """
    if custom.is_custom(name):
        return name
    spelling = _SPELLINGS.get(_squash_spelling(name))
    if spelling is None:
        raise unknown_name_error("model", name, _ZOO)
    return spelling


def display_name(name: str) -> str:
    """Return the published spelling: ``"resnet-20"`` gives ``"ResNet-20"``."""
    return _find_architecture(name).display


def minimum_side(name: str) -> int:
    """Return the smallest image side that the model accepts; 1 if only building can tell."""
    return _find_architecture(name).minimum_side


def describe(name: str) -> str:
    """Return one line: spelling, origin, parameters for 10 classes of 3x32x32, smallest side."""
    entry = _find_architecture(name)
    if custom.is_custom(name):
        return f"{entry.display}: {entry.summary}"
    with torch.device("meta"):
        model = entry.make(ImageTask(num_classes=10, channels=3, image_size=32))
    count = sum(parameter.numel() for parameter in model.parameters())
    side = entry.minimum_side
    return f"{entry.display}: {entry.summary}; {count:,} parameters, images from {side}x{side}"


def _find_architecture(name: str) -> Architecture:
    if custom.is_custom(name):
        display, summary = custom.display_name(name), custom.describe_origin(name)
        return Architecture(display, summary, 1, partial(custom.build, name))
    return _ZOO[canonical_name(name)]


def _squash_spelling(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def _validate_task(name: str, task: ImageTask) -> None:
    smallest, (height, width) = minimum_side(name), task.sides
    if task.num_classes < 2:
        raise RequestError(
            f"model '{name}' needs at least 2 classes, got {task.num_classes}: "
            "set num_classes to 2 or more"
        )
    if task.channels not in CHANNELS:
        raise RequestError(
            f"model '{name}' takes images of 1 or 3 channels, got {task.channels}: "
            "set channels to 1 (grey) or 3 (colour)"
        )
    if max(height, width) > LARGEST_SIDE:
        raise RequestError(
            f"model '{name}' takes images of at most {LARGEST_SIDE}x{LARGEST_SIDE} pixels, got "
            f"{height}x{width}: set data.image_size to {LARGEST_SIDE} or less"
        )
    if (side := min(height, width)) < smallest:
        fitting = ", ".join(other for other, entry in _ZOO.items() if entry.minimum_side <= side)
        raise RequestError(
            f"model '{name}' needs images of at least {smallest}x{smallest} pixels, got "
            f"{height}x{width}: set data.image_size to {smallest} or more"
            + (f", or choose one of: {fitting}" if fitting else "")
        )


def _entry(
    display: str, summary: str, minimum_side: int, constructor: str, **settings: int
) -> Architecture:
    """Return an entry that imports its constructor, ``file.function``, when a model is built.

    Some need torchvision, which takes as long to import as PyTorch; a deployed node would wait
    for it at each message.
    """

    def make(task: ImageTask) -> nn.Module:
        file, _, function = constructor.partition(".")
        module = import_module(f"pudica.models.architectures.{file}")
        model: nn.Module = getattr(module, function)(task, **settings)
        return model

    return Architecture(display, summary, minimum_side, make)


def _by_depth(
    display: str, summary: str, minimum_side: int, constructor: str, depths: Sequence[int]
) -> dict[str, Architecture]:
    """Return the entries of a family; ``display`` ends where the depth follows."""
    return {
        f"{display.lower().removesuffix('-')}-{depth}": _entry(
            f"{display}{depth}", summary, minimum_side, constructor, depth=depth
        )
        for depth in depths
    }


_RESNET = "residual network, He et al. 2016, §4.2"
_PRERESNET = "residual network with pre-activation, He et al. 2016"
_SE_RESNET = "residual network with squeeze and excitation, Hu et al. 2018"
_VGG = "batch norm and one linear layer, Simonyan and Zisserman 2015"
_DENSENET = "densely connected, Huang et al. 2017"
_EMBEDDING = "two convolutions to 32 features of length 1"
_SEPARABLE = "depthwise separable, after Howard et al. 2017"
_DEPTHS = (8, 20, 32, 44, 56, 110)

_SINGLE = (
    _entry("Softmax", "linear model on the pixels", 1, "sequential.softmax"),
    _entry("MLP", "perceptron with two hidden layers", 1, "sequential.mlp"),
    _entry("CNN-tiny", "two narrow convolutions", 2, "sequential.cnn_tiny"),
    _entry("CNN-small", "two convolutions with batch norm", 4, "sequential.cnn_small"),
    _entry("CNN-wide", "two wide convolutions", 3, "sequential.cnn_wide"),
    _entry("CNN-five", "five convolutions with batch norm", 4, "sequential.cnn_five"),
    _entry("CNN-IoT", "Jiang et al. 2019, Figure 2", 16, "sequential.cnn_iot"),
    _entry("CNN-embedding", _EMBEDDING, 12, "sequential.cnn_embedding"),
    _entry("CNN-separable", _SEPARABLE, 1, "sequential.cnn_separable"),
    _entry("VGG-small", "six narrow convolutions in pairs", 4, "deep.vgg_small"),
    _entry("DenseNet-small", _DENSENET, 4, "deep.densenet_small"),
    _entry("LeNet", "LeCun et al. 1998, with ReLU", 16, "sequential.lenet"),
    _entry("AlexNet", "Krizhevsky 2014, one linear layer", 29, "sequential.alexnet"),
)

_ZOO: dict[str, Architecture] = {
    **{entry.display.lower(): entry for entry in _SINGLE},
    **_by_depth("VGG", _VGG, 32, "deep.vgg", (11, 13, 16, 19)),
    **_by_depth("ResNet-", _RESNET, 1, "deep.resnet", _DEPTHS),
    "resnet-18": _entry("ResNet-18", "He et al. 2016, Table 1", 1, "deep.resnet_18"),
    **_by_depth("PreResNet-", _PRERESNET, 1, "deep.preresnet", _DEPTHS),
    **_by_depth("SE-ResNet-", _SE_RESNET, 1, "deep.se_resnet", (20, 56)),
    "resnext-29": _entry("ResNeXt-29", "8x64d, Xie et al. 2017, §5.3", 1, "deep.resnext_29"),
    **_by_depth("DenseNet-", _DENSENET, 8, "deep.densenet", (121, 161, 169, 201)),
    "googlenet": _entry("GoogLeNet", "Szegedy et al. 2015, Table 1", 1, "deep.googlenet"),
}

_SPELLINGS = {_squash_spelling(name): name for name in _ZOO}
