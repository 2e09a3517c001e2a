"""Parts shared by several families: staged trunk, pooled classifier, initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import normalize

Block = Callable[[int, int, int], nn.Module]
"""A residual block's constructor: channels in, channels out, stride."""


class UnitLength(nn.Module):
    """Scales each example's features to length 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (B, F) of length 1; zeros stay zeros."""
        return normalize(x, dim=1)


def conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without a bias, since batch norm follows."""
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)


def conv_bn_relu(channels: int, width: int) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU: the stem of every CIFAR form."""
    return nn.Sequential(conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def stack_stages(block: Block, first: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    """Stack stages of some blocks each, of which all but the first halve the side.

    ``first`` channels enter the first stage, ``widths`` are those that leave each stage.
    """
    layers: list[nn.Module] = []
    entering = first
    for stage, width in enumerate(widths):
        for position in range(blocks):
            halves = stage > 0 and position == 0
            layers.append(block(entering, width, 2 if halves else 1))
            entering = width
    return nn.Sequential(*layers)


def pooled_classifier(width: int, num_classes: int) -> nn.Sequential:
    """Return global average pooling and one linear layer, which fit any image size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def initialise_he(model: nn.Module) -> nn.Module:
    """Initialise every convolution as in He et al. 2015 (fan out) and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
