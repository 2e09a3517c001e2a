"""The registry of architectures: names, limits, and building a model from a name and a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

from pudica.models import custom
from pudica.models.architectures import ImageTask
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.randomness import temporary_seed

LARGEST_SIDE = 224
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry.

    Attributes
    ----------
    display : str
        The published spelling of the name.
    summary : str
        What it is and where it comes from, in a few words.
    minimum_side : int
        The smallest image side that it accepts.
    make : callable
        Builds the model for an :class:`ImageTask`.
    """

    display: str
    summary: str
    minimum_side: int
    make: Callable[[ImageTask], nn.Module]


def build(
    name: str, *, num_classes: int, channels: int = 3, image_size: int = 32, seed: int = 0
) -> nn.Module:
    """Build a classifier with freshly drawn weights, in training mode.

    Parameters
    ----------
    name : str
        A name from :func:`names` in any usual spelling, ``custom:package.module:callable``,
        ``torchvision:name``, or the path of an exported program that ends in ``.pt2`` (which
        brings its own weights and is frozen; see :func:`pudica.models.custom.is_frozen`).
    num_classes : int
        Number of classes, at least 2.
    channels : int
        1 for grey images, 3 for colour.
    image_size : int
        The images' side in pixels, at most 224.
    seed : int
        Determines the weights. The global generators are left as they were.

    Returns
    -------
    torch.nn.Module
        Maps floats (batch, channels, image_size, image_size) to logits (batch, num_classes).

    Raises
    ------
    RequestError
        If the name is unknown or the architecture does not fit these images.
    """
    task = ImageTask(num_classes, channels, image_size)
    _validate_task(name, task)
    with temporary_seed(seed):
        if custom.is_custom(name):
            return custom.build(name, task)
        # Channels-last is faster on the CPU for most models, in training too: docs/performance.md.
        # A custom model keeps its own layout, since its code may depend on it.
        return _find_architecture(name).make(task).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def check_available(name: str) -> None:
    """Check that a name denotes a model, whatever the task.

    Raises
    ------
    RequestError
        If the name is unknown, or the model can't be found or imported.
    """
    if custom.is_custom(name):
        custom.check_available(name)
    else:
        canonical_name(name)


def freeze(name: str, model: nn.Module) -> nn.Module:
    """Return a trained model in evaluation mode, with gradients for its input only.

    In the zoo's models batch norm is folded into the preceding layer where possible, which gives
    the same function up to rounding in less time. A custom model is not changed, since its code
    may do things that a trace would not show.

    Parameters
    ----------
    name : str
        The name that the model was built from.
    model : Module
        Put into evaluation mode, without gradients; the returned model may be a copy.
    """
    from torch.fx.experimental.optimization import fuse  # slow to import

    model.requires_grad_(False).eval()
    return model if custom.is_custom(name) else fuse(model)


def names() -> list[str]:
    """Return all names of the zoo, sorted by family and size."""
    return list(_ZOO)


def canonical_name(name: str) -> str:
    """Return the zoo's own spelling: ``"VGG16"`` gives ``"vgg-16"``.

    Custom names are returned unchanged.

    Raises
    ------
    RequestError
        If there is no such model.
    """
    if custom.is_custom(name):
        return name
    spelling = _SPELLINGS.get(_squash_spelling(name))
    if spelling is None:
        raise unknown_name_error("model", name, _ZOO)
    return spelling


def display_name(name: str) -> str:
    """Return the published spelling: ``"resnet-20"`` gives ``"ResNet-20"``."""
    return custom.display_name(name) if custom.is_custom(name) else _find_architecture(name).display


def minimum_side(name: str) -> int:
    """Return the smallest image side that the model accepts; 1 if only building can tell."""
    return 1 if custom.is_custom(name) else _find_architecture(name).minimum_side


def describe(name: str) -> str:
    """Return one line: spelling, origin, parameters for 10 classes of 3x32x32, smallest side."""
    if custom.is_custom(name):
        return custom.describe(name)
    entry = _find_architecture(name)
    with torch.device("meta"):
        model = entry.make(ImageTask(num_classes=10, channels=3, image_size=32))
    count = sum(parameter.numel() for parameter in model.parameters())
    side = entry.minimum_side
    return f"{entry.display}: {entry.summary}; {count:,} parameters, images from {side}x{side}"


def _find_architecture(name: str) -> Architecture:
    return _ZOO[canonical_name(name)]


def _squash_spelling(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def _validate_task(name: str, task: ImageTask) -> None:
    smallest = minimum_side(name)
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
    if task.image_size > LARGEST_SIDE:
        raise RequestError(
            f"model '{name}' takes images of at most {_format_square(LARGEST_SIDE)} pixels, got "
            f"{_format_square(task.image_size)}: set data.image_size to {LARGEST_SIDE} or less"
        )
    if task.image_size < smallest:
        raise RequestError(
            f"model '{name}' needs images of at least {_format_square(smallest)} pixels, got "
            f"{_format_square(task.image_size)}: set data.image_size to {smallest} or more"
            + _suggest_alternatives(task.image_size)
        )


def _suggest_alternatives(side: int) -> str:
    fitting = [name for name, entry in _ZOO.items() if entry.minimum_side <= side]
    return f", or choose one of: {', '.join(fitting)}" if fitting else ""


def _format_square(side: int) -> str:
    return f"{side}x{side}"


def _lazy(family: str, constructor: str, **settings: int) -> Callable[[ImageTask], nn.Module]:
    """Return a constructor that imports its family only when a model is built.

    Some families need torchvision, which takes as long to import as PyTorch; a deployed node
    would wait for it at each message.
    """

    def make(task: ImageTask) -> nn.Module:
        module = import_module(f"pudica.models.architectures.{family}")
        model: nn.Module = getattr(module, constructor)(task, **settings)
        return model

    return make


_RESNET = "residual network, He et al. 2016, §4.2"
_PRERESNET = "residual network with pre-activation, He et al. 2016"
_SE_RESNET = "residual network with squeeze and excitation, Hu et al. 2018"
_VGG = "batch norm and one linear layer, Simonyan and Zisserman 2015"
_DENSENET = "densely connected, Huang et al. 2017"

_ZOO: dict[str, Architecture] = {
    "softmax": Architecture("Softmax", "linear model on the pixels", 1, _lazy("small", "softmax")),
    "mlp": Architecture("MLP", "perceptron with two hidden layers", 1, _lazy("small", "mlp")),
    "cnn-tiny": Architecture("CNN-tiny", "two narrow convolutions", 2, _lazy("small", "cnn_tiny")),
    "cnn-small": Architecture(
        "CNN-small", "two convolutions with batch norm", 4, _lazy("small", "cnn_small")
    ),
    "cnn-wide": Architecture("CNN-wide", "two wide convolutions", 3, _lazy("small", "cnn_wide")),
    "cnn-five": Architecture(
        "CNN-five", "five convolutions with batch norm", 4, _lazy("small", "cnn_five")
    ),
    "cnn-iot": Architecture(
        "CNN-IoT", "Jiang et al. 2019, Figure 2", 16, _lazy("small", "cnn_iot")
    ),
    "cnn-embedding": Architecture(
        "CNN-embedding",
        "two convolutions to 32 features of length 1",
        12,
        _lazy("small", "cnn_embedding"),
    ),
    "cnn-separable": Architecture(
        "CNN-separable",
        "depthwise separable, after Howard et al. 2017",
        1,
        _lazy("small", "cnn_separable"),
    ),
    "vgg-small": Architecture(
        "VGG-small", "six narrow convolutions in pairs", 4, _lazy("vgg", "vgg_small")
    ),
    "densenet-small": Architecture(
        "DenseNet-small", _DENSENET, 4, _lazy("densenet", "densenet_small")
    ),
    "lenet": Architecture("LeNet", "LeCun et al. 1998, with ReLU", 16, _lazy("lenet", "lenet")),
    "alexnet": Architecture(
        "AlexNet", "Krizhevsky 2014, one linear layer", 29, _lazy("alexnet", "alexnet")
    ),
    **{
        f"vgg-{depth}": Architecture(f"VGG{depth}", _VGG, 32, _lazy("vgg", "vgg", depth=depth))
        for depth in (11, 13, 16, 19)
    },
    **{
        f"resnet-{depth}": Architecture(
            f"ResNet-{depth}", _RESNET, 1, _lazy("residual", "resnet", depth=depth)
        )
        for depth in (8, 20, 32, 44, 56, 110)
    },
    "resnet-18": Architecture(
        "ResNet-18", "He et al. 2016, Table 1", 1, _lazy("residual", "resnet_18")
    ),
    **{
        f"preresnet-{depth}": Architecture(
            f"PreResNet-{depth}",
            _PRERESNET,
            1,
            _lazy("residual", "preresnet", depth=depth),
        )
        for depth in (8, 20, 32, 44, 56, 110)
    },
    **{
        f"se-resnet-{depth}": Architecture(
            f"SE-ResNet-{depth}",
            _SE_RESNET,
            1,
            _lazy("residual", "se_resnet", depth=depth),
        )
        for depth in (20, 56)
    },
    "resnext-29": Architecture(
        "ResNeXt-29", "8x64d, Xie et al. 2017, §5.3", 1, _lazy("resnext", "resnext_29")
    ),
    **{
        f"densenet-{depth}": Architecture(
            f"DenseNet-{depth}",
            _DENSENET,
            8,
            _lazy("densenet", "densenet", depth=depth),
        )
        for depth in (121, 161, 169, 201)
    },
    "googlenet": Architecture(
        "GoogLeNet", "Szegedy et al. 2015, Table 1", 1, _lazy("googlenet", "googlenet")
    ),
}

_SPELLINGS = {_squash_spelling(name): name for name in _ZOO}
