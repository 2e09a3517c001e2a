"""Data and a network in three stages: nothing here knows of Pudica."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset


@cache
def data() -> dict[str, TensorDataset]:
    """Return the owner's training images and the edges' test images."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:1498], "test": order[1498:]}
    return {name: TensorDataset(x[rows], y[rows]) for name, rows in parts.items()}


def share(place: int, nodes: int) -> Subset:
    """Return one edge's images."""
    return Subset(data()["test"], range(place, len(data()["test"]), nodes))


def stages() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return first, middle and last stage: edge, cloud, edge."""
    torch.manual_seed(0)
    pre = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    main = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten())
    post = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    return pre, main, post
