"""A device's part of a split model: the layers before the cut, and the shield behind them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pudica.clients.shields.base import Shape, Shield


class Front(nn.Module):
    """Layers and a shield; the state of both identifies a front."""

    def __init__(self, layers: nn.Module, shield: Shield) -> None:
        super().__init__()
        self.layers = layers
        self.shield = shield

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations at the cut, before the shield."""
        return self.layers(x)  # type: ignore[no-any-return]


def activation_shape(layers: nn.Module, image: Shape) -> Shape:
    """Return the shape of one example's activation after some layers, which are not changed."""
    ghost = copy.deepcopy(layers).to("meta").eval()
    return tuple(ghost(torch.empty(1, *image, device="meta")).shape[1:])
