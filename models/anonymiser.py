"""A network that redraws images, to be trained against somebody who recognises people in them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

WIDTH = 32


class Anonymiser(nn.Module):
    """A U-Net from images to images of the same shape: what it changes, it adds.

    Parameters
    ----------
    channels : int
        Of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _block(channels, WIDTH)
        self.down = _block(WIDTH, 2 * WIDTH, stride=2)
        self.bottom = _block(2 * WIDTH, 4 * WIDTH, stride=2)
        self.up = _block(6 * WIDTH, 2 * WIDTH)
        self.last = _block(3 * WIDTH, WIDTH)
        self.change = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return redrawn images, (B, C, H, W)."""
        first = self.first(x)
        down = self.down(first)
        up = self.up(torch.cat([_as_large(self.bottom(down), down), down], 1))
        last = self.last(torch.cat([_as_large(up, first), first], 1))
        changed: torch.Tensor = x + self.change(last)
        return changed


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


def _as_large(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return interpolate(x, size=other.shape[2:], mode="nearest")
