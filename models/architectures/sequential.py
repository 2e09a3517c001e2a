"""Networks that are one sequence of layers; nothing here needs torchvision."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import UnitLength, conv_bn_relu, pooled_classifier


def softmax(task: ImageTask) -> nn.Module:
    """Return multinomial logistic regression on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_pixels(task), task.num_classes))


def mlp(task: ImageTask) -> nn.Module:
    """Return a perceptron with hidden layers of 256 and 128 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(_pixels(task), 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, task.num_classes),
    )


def cnn_tiny(task: ImageTask) -> nn.Module:
    """Return two 3x3 convolutions of 8 and 16 channels and a linear layer on a 2x2 grid."""
    return nn.Sequential(
        nn.Conv2d(task.channels, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, task.num_classes),
    )


def cnn_small(task: ImageTask) -> nn.Module:
    """Return 3x3 convolutions of 32 and 64 channels with batch norm, pooled to a 2x2 grid."""
    return nn.Sequential(
        conv_bn_relu(task.channels, 32),
        nn.MaxPool2d(2),
        conv_bn_relu(32, 64),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, task.num_classes),
    )


def cnn_wide(task: ImageTask) -> nn.Module:
    """Return a 5x5 and a 3x3 convolution of 64 and 128 channels and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(task.channels, 64, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, task.num_classes),
    )


def cnn_five(task: ImageTask) -> nn.Module:
    """Return five 3x3 convolutions of 16 to 64 channels with batch norm and a linear layer.

    Zhao et al. 2023 (DLMT) classify MNIST with "a simple network with five convolutional layers"
    and give no more detail.
    """
    return nn.Sequential(
        conv_bn_relu(task.channels, 16),
        nn.MaxPool2d(2),
        conv_bn_relu(16, 32),
        conv_bn_relu(32, 32),
        nn.MaxPool2d(2),
        conv_bn_relu(32, 64),
        conv_bn_relu(64, 64),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(64 * 3 * 3, task.num_classes),
    )


def cnn_iot(task: ImageTask) -> nn.Module:
    """Return two 5x5 convolutions and five dense layers (Jiang et al. 2019, Figure 2).

    Each dense layer is half as wide as the one before, a choice that the paper leaves open. Its
    batch norm belongs to the noise at the cut, after ``4``.
    """
    widths = [80 * _area_after_two_5x5(task), 640, 320, 160, 80]
    dense = [
        layer
        for width, next_width in pairwise(widths)
        for layer in (nn.Linear(width, next_width), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(
        nn.Conv2d(task.channels, 30, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(30, 80, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *dense,
        nn.Linear(widths[-1], task.num_classes),
    )


def cnn_embedding(task: ImageTask) -> nn.Module:
    """Return two 5x5 convolutions to 32 features of unit length, and a linear layer on them.

    Only the features' direction is classified, so a cut after ``norm`` sends bounded activations.
    """
    height, width = ((side // 2 - 4) // 2 for side in task.sides)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(task.channels, 32, 5, padding=2)),
        ("relu1", nn.ReLU(inplace=True)),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 5)),
        ("relu2", nn.ReLU(inplace=True)),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("dropout", nn.Dropout(0.25)),
        ("features", nn.Linear(64 * height * width, 32)),
        ("norm", UnitLength()),
        ("classes", nn.Linear(32, task.num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def cnn_separable(task: ImageTask) -> nn.Module:
    """Return depthwise separable convolutions of 32 to 128 channels (Howard et al. 2017)."""
    return nn.Sequential(
        conv_bn_relu(task.channels, 32),
        _separable(32, 64, stride=2),
        _separable(64, 64, stride=1),
        _separable(64, 128, stride=2),
        pooled_classifier(128, task.num_classes),
    )


def lenet(task: ImageTask) -> nn.Module:
    """Return LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as in kuangliu/pytorch-cifar.

    The first linear layer grows with the image; at 32 pixels it has the published size.
    """
    return nn.Sequential(
        nn.Conv2d(task.channels, 6, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * _area_after_two_5x5(task), 120),
        nn.ReLU(inplace=True),
        nn.Linear(120, 84),
        nn.ReLU(inplace=True),
        nn.Linear(84, task.num_classes),
    )


def alexnet(task: ImageTask) -> nn.Module:
    """Return AlexNet (Krizhevsky 2014) as in bearpaw/pytorch-classification: one linear layer.

    At 32 pixels the pooling before the linear layer has no effect, since one pixel is left.
    """
    return nn.Sequential(
        nn.Conv2d(task.channels, 64, 11, stride=4, padding=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        pooled_classifier(256, task.num_classes),
    )


def _separable(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _pixels(task: ImageTask) -> int:
    return task.channels * math.prod(task.sides)


def _area_after_two_5x5(task: ImageTask) -> int:
    """Return the pixels after two unpadded 5x5 convolutions, each followed by pooling."""
    return math.prod(((side - 4) // 2 - 4) // 2 for side in task.sides)
