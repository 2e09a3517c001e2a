"""GoogLeNet from torchvision with a stem for CIFAR."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux

from pudica.models.architectures import ImageTask


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
