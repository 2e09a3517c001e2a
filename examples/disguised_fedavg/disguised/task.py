"""Data and a network: nothing here knows of Pudica."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset


@cache
def data() -> dict[str, TensorDataset]:
    """Return training and test images, bytes as in files, in a fixed order."""
    digits = load_digits()
    x = torch.tensor(digits.images / 16 * 255).round().to(torch.uint8)[:, None]
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:1498], "test": order[1498:]}
    return {name: TensorDataset(x[rows], y[rows]) for name, rows in parts.items()}


def share(part: str, place: int, nodes: int) -> Subset:
    """Return one owner's images."""
    return Subset(data()[part], range(place, len(data()[part]), nodes))


def network() -> nn.Module:
    """Return the network that travels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
