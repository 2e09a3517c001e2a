"""Residual networks for CIFAR (He et al. 2016): plain, pre-activation, squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, resnet18
from torchvision.ops import SqueezeExcitation

from pudica.models.architectures import ImageTask
from pudica.models.architectures.layers import (
    Block,
    conv3x3,
    conv_bn_relu,
    initialise_he,
    pooled_classifier,
    stack_stages,
)

_WIDTHS = (16, 32, 64)
_LARGEST_WITH_SMALL_STEM = 64
_SQUEEZE = 16


def resnet(task: ImageTask, depth: int) -> nn.Module:
    """Return ResNet with 6n + 2 layers (He et al. 2016, "Deep residual learning", §4.2)."""
    return _cifar_resnet(task, depth, _basic_block)


def se_resnet(task: ImageTask, depth: int) -> nn.Module:
    """Return :func:`resnet` with squeeze and excitation, reduction 16 (Hu et al. 2018, Fig. 3)."""
    return _cifar_resnet(task, depth, _squeezing_block)


def preresnet(task: ImageTask, depth: int) -> nn.Module:
    """Return pre-activation ResNet with 6n + 2 layers (He et al. 2016, "Identity mappings").

    It has basic blocks at every depth. Where the side halves, the shortcut is a 1x1 convolution,
    as in bearpaw/pytorch-classification (which uses bottlenecks from 44 layers on).
    """
    width = _WIDTHS[-1]
    return initialise_he(
        nn.Sequential(
            conv3x3(task.channels, _WIDTHS[0]),
            stack_stages(PreActivationBlock, _WIDTHS[0], _WIDTHS, _blocks_per_stage(depth)),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            pooled_classifier(width, task.num_classes),
        )
    )


def resnet_18(task: ImageTask) -> nn.Module:
    """Return torchvision's ResNet-18 (He et al. 2016, Table 1).

    Up to 64 pixels the stem is one 3x3 convolution, as in kuangliu/pytorch-cifar; above that, it
    is torchvision's, which quarters the side.
    """
    model: nn.Module = resnet18(num_classes=task.num_classes)
    if task.image_size <= _LARGEST_WITH_SMALL_STEM:
        model.conv1 = conv3x3(task.channels, 64)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(task.channels, 64, 7, stride=2, padding=3, bias=False)
    return initialise_he(model)


class ZeroPadShortcut(nn.Module):
    """A shortcut without parameters: subsample and fill new channels with zeros (option A).

    Parameters
    ----------
    channels, width : int
        Channels in and out.
    stride : int
        Stride of the subsampling.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        missing = width - channels
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to (batch, width, h / stride, w / stride)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions (He et al. 2016, Fig. 1b).

    Parameters
    ----------
    channels, width : int
        Channels in and out.
    stride : int
        Stride of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            conv3x3(channels, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv3x3(width, width),
        )
        same = channels == width and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to (batch, width, h / stride, w / stride)."""
        total: torch.Tensor = self.shortcut(x) + self.residual(x)
        return total


def _cifar_resnet(task: ImageTask, depth: int, block: Block) -> nn.Module:
    return initialise_he(
        nn.Sequential(
            conv_bn_relu(task.channels, _WIDTHS[0]),
            stack_stages(block, _WIDTHS[0], _WIDTHS, _blocks_per_stage(depth)),
            pooled_classifier(_WIDTHS[-1], task.num_classes),
        )
    )


def _blocks_per_stage(depth: int) -> int:
    return (depth - 2) // 6


def _basic_block(channels: int, width: int, stride: int) -> BasicBlock:
    same = channels == width and stride == 1
    shortcut = None if same else ZeroPadShortcut(channels, width, stride)
    return BasicBlock(channels, width, stride, downsample=shortcut)


def _squeezing_block(channels: int, width: int, stride: int) -> BasicBlock:
    block = _basic_block(channels, width, stride)
    # The paper places it last before the addition.
    block.bn2 = nn.Sequential(block.bn2, SqueezeExcitation(width, width // _SQUEEZE))
    return block
