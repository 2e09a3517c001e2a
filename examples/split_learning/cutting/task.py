"""Data and a model in two parts: nothing here knows of Pudica."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset

CLASSES = 10


@cache
def data() -> dict[str, TensorDataset]:
    """Return training and test images, in a fixed order."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:1498], "test": order[1498:]}
    return {name: TensorDataset(x[rows], y[rows]) for name, rows in parts.items()}


def share(part: str, place: int, nodes: int) -> Subset:
    """Return one device's images."""
    return Subset(data()[part], range(place, len(data()[part]), nodes))


class Coarse(nn.Module):
    """A coarse picture of length one: a front that has learnt nothing of anybody."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations (B, 16)."""
        coarse = nn.functional.avg_pool2d(x, 2).flatten(1) - 0.3
        return nn.functional.normalize(coarse)


def front() -> nn.Module:
    """Return the layers on the devices."""
    return Coarse()


def back() -> nn.Module:
    """Return the layers at the cloud."""
    return nn.Linear(16, CLASSES)
