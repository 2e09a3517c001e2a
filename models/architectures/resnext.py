"""ResNeXt for CIFAR, from torchvision's bottleneck."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import Bottleneck

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import (
    conv_bn_relu,
    initialise_he,
    pooled_classifier,
    stack_stages,
)

_STEM = 64
_WIDTHS = (256, 512, 1024)


def resnext_29(task: ImageTask) -> nn.Module:
    """Return ResNeXt-29, 8x64d (Xie et al. 2017, §5.3): 8 groups of 64 channels at first."""
    return initialise_he(
        nn.Sequential(
            conv_bn_relu(task.channels, _STEM),
            stack_stages(_bottleneck, _STEM, _WIDTHS, blocks=3),
            pooled_classifier(_WIDTHS[-1], task.num_classes),
        )
    )


def _bottleneck(channels: int, width: int, stride: int) -> Bottleneck:
    same = channels == width and stride == 1
    shortcut = (
        None
        if same
        else nn.Sequential(
            nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    )
    planes = width // Bottleneck.expansion
    return Bottleneck(channels, planes, stride, downsample=shortcut, groups=8, base_width=64)
