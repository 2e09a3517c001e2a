"""The layers before a cut, with the shield behind them: what a device owns of a model."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pudica.clients.shields.base import Shape, Shield


class Front(nn.Module):
    """Layers and shield; its state is what makes one front another.

    Parameters
    ----------
    layers : Module
    shield : Shield
    """

    def __init__(self, layers: nn.Module, shield: Shield) -> None:
        super().__init__()
        self.layers = layers
        self.shield = shield

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations at the cut, before the shield."""
        return self.layers(x)  # type: ignore[no-any-return]


def activation_shape(layers: nn.Module, image: Shape) -> Shape:
    """Return the shape of one example's activation behind some layers, which stay as they are."""
    ghost = copy.deepcopy(layers).to("meta").eval()
    return tuple(ghost(torch.empty(1, *image, device="meta")).shape[1:])
