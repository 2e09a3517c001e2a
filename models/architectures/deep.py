"""Deep networks in the form for CIFAR, from torchvision's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux
from torchvision.models.resnet import BasicBlock, Bottleneck, resnet18
from torchvision.models.vgg import cfgs, make_layers
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

_VGG_COLUMNS = {11: "A", 13: "B", 16: "D", 19: "E"}
"""The columns of Table 1 in Simonyan and Zisserman 2015, by depth."""


def vgg(task: ImageTask, depth: int) -> nn.Module:
    """Return VGG with batch norm and one linear layer, as in kuangliu/pytorch-cifar.

    Simonyan and Zisserman 2015, Table 1; ``depth`` is 11, 13, 16 or 19.
    """
    return _vgg(task, cfgs[_VGG_COLUMNS[depth]])


def vgg_small(task: ImageTask) -> nn.Module:
    """Return six VGG convolutions of 16 to 64 channels, for images from 4x4 pixels."""
    return _vgg(task, [16, 16, "M", 32, 32, "M", 64, 64])


def _vgg(task: ImageTask, configuration: list[str | int]) -> nn.Module:
    features = make_layers(configuration, batch_norm=True)
    # torchvision fixes three input channels.
    features[0] = nn.Conv2d(task.channels, features[0].out_channels, 3, padding=1)
    width = [item for item in configuration if isinstance(item, int)][-1]
    return initialise_he(nn.Sequential(features, pooled_classifier(width, task.num_classes)))


_WIDTHS = (16, 32, 64)
_LARGEST_WITH_SMALL_STEM = 64
_SQUEEZE = 16


def resnet(task: ImageTask, depth: int) -> nn.Module:
    """Return ResNet with 6n + 2 layers (He et al. 2016, "Deep residual learning", §4.2)."""
    return _residual(task, _basic_block, _WIDTHS[0], _WIDTHS, (depth - 2) // 6)


def se_resnet(task: ImageTask, depth: int) -> nn.Module:
    """Return :func:`resnet` with squeeze and excitation, reduction 16 (Hu et al. 2018, Fig. 3)."""
    return _residual(task, _squeezing_block, _WIDTHS[0], _WIDTHS, (depth - 2) // 6)


def resnext_29(task: ImageTask) -> nn.Module:
    """Return ResNeXt-29, 8x64d (Xie et al. 2017, §5.3): 8 groups of 64 channels at first."""
    return _residual(task, _bottleneck, 64, (256, 512, 1024), 3)


def preresnet(task: ImageTask, depth: int) -> nn.Module:
    """Return pre-activation ResNet with 6n + 2 layers (He et al. 2016, "Identity mappings").

    It has basic blocks at every depth. Where the side halves, the shortcut is a 1x1 convolution,
    as in bearpaw/pytorch-classification (which uses bottlenecks from 44 layers on).
    """
    width = _WIDTHS[-1]
    return initialise_he(
        nn.Sequential(
            conv3x3(task.channels, _WIDTHS[0]),
            stack_stages(PreActivationBlock, _WIDTHS[0], _WIDTHS, (depth - 2) // 6),
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
    if max(task.sides) <= _LARGEST_WITH_SMALL_STEM:
        model.conv1 = conv3x3(task.channels, 64)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(task.channels, 64, 7, stride=2, padding=3, bias=False)
    return initialise_he(model)


class ZeroPadShortcut(nn.Module):
    """A shortcut without parameters: subsample and fill new channels with zeros (option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        missing = width - channels
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to (batch, width, h / stride, w / stride)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions (He et al. 2016, Fig. 1b)."""

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


def _residual(
    task: ImageTask, block: Block, stem: int, widths: tuple[int, ...], blocks: int
) -> nn.Module:
    return initialise_he(
        nn.Sequential(
            conv_bn_relu(task.channels, stem),
            stack_stages(block, stem, widths, blocks),
            pooled_classifier(widths[-1], task.num_classes),
        )
    )


def _basic_block(channels: int, width: int, stride: int) -> BasicBlock:
    same = channels == width and stride == 1
    shortcut = None if same else ZeroPadShortcut(channels, width, stride)
    return BasicBlock(channels, width, stride, downsample=shortcut)


def _squeezing_block(channels: int, width: int, stride: int) -> BasicBlock:
    block = _basic_block(channels, width, stride)
    # The paper places it last before the addition.
    block.bn2 = nn.Sequential(block.bn2, SqueezeExcitation(width, width // _SQUEEZE))
    return block


def _bottleneck(channels: int, width: int, stride: int) -> Bottleneck:
    shortcut = None
    if channels != width or stride != 1:
        projection = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
    planes = width // Bottleneck.expansion
    return Bottleneck(channels, planes, stride, downsample=shortcut, groups=8, base_width=64)


_DENSENETS: dict[int, tuple[int, int, tuple[int, ...]]] = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}
"""Growth rate, channels of the stem and layers of each block (Huang et al. 2017, Table 1)."""


def densenet(task: ImageTask, depth: int) -> nn.Module:
    """Return DenseNet with depth 121, 161, 169 or 201 (Huang et al. 2017, Table 1)."""
    return _densenet(task, *_DENSENETS[depth])


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


def googlenet(task: ImageTask) -> nn.Module:
    """Return GoogLeNet (Szegedy et al. 2015, Table 1) in the form of kuangliu/pytorch-cifar.

    The stem is one 3x3 convolution, two poolings halve the side, and there is neither dropout nor
    auxiliary outputs, so it returns plain logits in training too. Unlike kuangliu's, no
    convolution has a bias (batch norm follows each), so it has 6.16 M parameters instead of
    6.17 M.
    """
    model: nn.Module = GoogLeNet(
        num_classes=task.num_classes,
        aux_logits=False,
        init_weights=False,
        blocks=[BasicConv2d, WideInception, InceptionAux],
        dropout=0.0,
    )
    model.conv1 = BasicConv2d(task.channels, 192, kernel_size=3, padding=1)
    for skipped in ("maxpool1", "conv2", "conv3", "maxpool2"):
        setattr(model, skipped, nn.Identity())
    model.maxpool3 = nn.MaxPool2d(3, stride=2, padding=1)
    model.maxpool4 = nn.MaxPool2d(3, stride=2, padding=1)
    return model


class WideInception(Inception):
    """torchvision's block with the paper's 5x5 receptive field on its third branch.

    torchvision has one 3x3 convolution there (vision issue 906); a second one makes it 5x5.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        width = self.branch3[-1].conv.out_channels
        self.branch3.append(BasicConv2d(width, width, kernel_size=3, padding=1))
