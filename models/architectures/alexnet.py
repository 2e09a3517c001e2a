"""AlexNet for CIFAR, as in bearpaw/pytorch-classification."""

from __future__ import annotations

from torch import nn

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import pooled_classifier


def alexnet(task: ImageTask) -> nn.Module:
    """Return AlexNet (Krizhevsky 2014) with the padding and single linear layer of the CIFAR form.

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
