"""DenseNet-BC from torchvision with a stem for CIFAR."""

from __future__ import annotations

from torch import nn
from torchvision.models import DenseNet

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import conv3x3

_CONFIGURATION: dict[int, tuple[int, int, tuple[int, ...]]] = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}
"""Growth rate, channels of the stem and layers of each block (Huang et al. 2017, Table 1)."""


def densenet(task: ImageTask, depth: int) -> nn.Module:
    """Return DenseNet with depth 121, 161, 169 or 201 (Huang et al. 2017, Table 1)."""
    return _densenet(task, *_CONFIGURATION[depth])


def densenet_small(task: ImageTask) -> nn.Module:
    """Return three dense blocks of two layers that add 8 channels each."""
    return _densenet(task, 8, 16, (2, 2, 2))


def _densenet(task: ImageTask, growth: int, stem: int, blocks: tuple[int, ...]) -> nn.Module:
    model: nn.Module = DenseNet(growth, blocks, stem, num_classes=task.num_classes)
    # A 3x3 stem without pooling: torchvision's stem would quarter the side of a 32-pixel image.
    features = model.get_submodule("features")
    features.conv0 = conv3x3(task.channels, stem)
    nn.init.kaiming_normal_(features.conv0.weight)
    features.pool0 = nn.Identity()
    return model
