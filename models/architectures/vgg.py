"""VGG with batch norm and one linear layer, as in kuangliu/pytorch-cifar."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import initialise_he, pooled_classifier

_CONFIGURATION = {11: "A", 13: "B", 16: "D", 19: "E"}
"""The columns of Table 1 in Simonyan and Zisserman 2015, by depth."""

_SMALL: list[str | int] = [16, 16, "M", 32, 32, "M", 64, 64]


def vgg(task: ImageTask, depth: int) -> nn.Module:
    """Return VGG with depth 11, 13, 16 or 19 (Simonyan and Zisserman 2015, Table 1)."""
    return _vgg(task, cfgs[_CONFIGURATION[depth]])


def vgg_small(task: ImageTask) -> nn.Module:
    """Return six VGG convolutions of 16 to 64 channels, for images from 4x4 pixels."""
    return _vgg(task, _SMALL)


def _vgg(task: ImageTask, configuration: list[str | int]) -> nn.Module:
    features = make_layers(configuration, batch_norm=True)
    # torchvision fixes three input channels.
    features[0] = nn.Conv2d(task.channels, features[0].out_channels, 3, padding=1)
    width = [item for item in configuration if isinstance(item, int)][-1]
    return initialise_he(nn.Sequential(features, pooled_classifier(width, task.num_classes)))
