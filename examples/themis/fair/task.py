"""Data and networks: nothing here knows of Pudica."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@cache
def data() -> dict[str, TensorDataset]:
    """Return the public training and validation set, and the organiser's test set."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:1198], "validation": order[1198:1497], "test": order[1497:]}
    return {name: TensorDataset(x[rows], y[rows]) for name, rows in parts.items()}


def convolutions(width: int) -> nn.Module:
    """Return a network of two convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
    )


NETWORKS = {
    "Softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "MLP": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "Narrow": lambda: convolutions(2),
    "Wide": lambda: convolutions(24),
}


def fit(model: nn.Module, train: TensorDataset) -> None:
    """Train a network for a few epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for x, y in (b for _ in range(8) for b in DataLoader(train, 64, True, generator=order)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
