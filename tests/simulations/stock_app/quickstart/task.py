"""Model, data and training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


def load_data(partition_id, num_partitions, shuffle):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30 * num_partitions) % 3
    images = 0.3 * torch.randn((len(labels), 1, 4, 4), generator=generator)
    images[torch.arange(len(labels)), 0, labels] += 1
    mine = slice(partition_id, None, num_partitions)
    data = TensorDataset(images[mine], labels[mine])
    return DataLoader(data, batch_size=8, shuffle=shuffle), DataLoader(data, batch_size=30)


def train(net, loader, epochs, lr):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(loader)


def test(net, loader):
    net.eval()
    with torch.no_grad():
        correct = sum((net(x).argmax(1) == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)
