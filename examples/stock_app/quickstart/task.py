"""Data and a network."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images and labels, in a fixed order."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return x[order], torch.tensor(digits.target)[order]


def share(place: int, nodes: int, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one node's images: four of five to train on, the others to test."""
    x, y = (values[place::nodes] for values in data())
    held_out = torch.arange(len(y)) % 5 == 0
    chosen = held_out if test else ~held_out
    return x[chosen], y[chosen]


def network() -> nn.Module:
    """Return an untrained network."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, epochs: int = 3) -> float:
    """Train; return the last loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.arange(len(y)).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
    return float(loss.detach())
