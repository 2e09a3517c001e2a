"""A network that redraws images, trained against an adversary that recognises people in them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

WIDTH = 32


class Anonymiser(nn.Module):
    """A U-Net that adds a learned change to images of the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv_block(channels, WIDTH)
        self.down = _conv_block(WIDTH, 2 * WIDTH, stride=2)
        self.bottom = _conv_block(2 * WIDTH, 4 * WIDTH, stride=2)
        self.up = _conv_block(6 * WIDTH, 2 * WIDTH)
        self.last = _conv_block(3 * WIDTH, WIDTH)
        self.change = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return redrawn images, (B, C, H, W)."""
        first = self.first(x)
        down = self.down(first)
        up = self.up(torch.cat([_upsample_like(self.bottom(down), down), down], 1))
        last = self.last(torch.cat([_upsample_like(up, first), first], 1))
        changed: torch.Tensor = x + self.change(last)
        return changed


def _conv_block(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def _upsample_like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return interpolate(x, size=other.shape[2:], mode="nearest")
