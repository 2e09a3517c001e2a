"""LeNet-5 with ReLU and max pooling, as in kuangliu/pytorch-cifar."""

from __future__ import annotations

from torch import nn

from pudica.models.architectures import ImageTask


def lenet(task: ImageTask) -> nn.Module:
    """Return LeNet (LeCun et al. 1998): two 5x5 convolutions, three linear layers.

    The first linear layer grows with the image; at 32 pixels it has the published size.
    """
    side = ((task.image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(task.channels, 6, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(inplace=True),
        nn.Linear(120, 84),
        nn.ReLU(inplace=True),
        nn.Linear(84, task.num_classes),
    )
