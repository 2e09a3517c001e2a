"""A linear back from the classes' mean activations: what averages noise best."""

from __future__ import annotations

import torch
from torch import nn

from models.errors import RequestError


def single_layer(back: nn.Module) -> nn.Linear:
    """Return the linear layer that a back consists of.

    Raises
    ------
    RequestError
        If it consists of more than that.
    """
    layers = [layer for layer in back.modules() if any(True for _ in layer.parameters(False))]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise RequestError(
            "fit: 'means' needs a back that is a single linear layer; choose a later cut, or sgd"
        )
    return layers[0]


@torch.no_grad()
def fit_means(back: nn.Module, smashed: torch.Tensor, labels: torch.Tensor) -> None:
    """Let a linear back choose the class whose mean is nearest.

    Of ``−‖x − m_c‖²/2`` what depends on the class is ``m_c·x − ‖m_c‖²/2``. Noise moves the
    squared length of a mean of n activations by its variance over n in each coordinate, which
    is estimated from the spread in the class and taken off.

    Parameters
    ----------
    smashed : Tensor of shape (N, F)
    labels : Tensor of shape (N,)
    """
    layer = single_layer(back)
    for label in range(layer.out_features):
        own = smashed[labels == label].flatten(1)
        if not len(own):
            layer.weight[label], layer.bias[label] = 0.0, -torch.inf
            continue
        mean = own.mean(0)
        spread = own.var(0).sum() / len(own) if len(own) > 1 else 0.0
        layer.weight[label] = mean
        layer.bias[label] = -(mean.square().sum() - spread) / 2
