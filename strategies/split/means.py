"""A linear back from the classes' mean activations: what averages noise best."""

from __future__ import annotations

import math

import torch
from torch import nn

from pudica.models.errors import RequestError


@torch.no_grad()
def single_layer(back: nn.Module, shape: tuple[int, ...]) -> nn.Linear:
    """Return the linear layer that a back consists of.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.

    Raises
    ------
    RequestError
        If it consists of more than that.
    """
    layers = [layer for layer in back.modules() if any(True for _ in layer.parameters(False))]
    layer = layers[0] if len(layers) == 1 else None
    if not isinstance(layer, nn.Linear) or not _is_all(back, layer, shape):
        raise RequestError(
            "fit: 'means' needs a back that is a single linear layer; choose a later cut, or sgd"
        )
    return layer


def _is_all(back: nn.Module, layer: nn.Linear, shape: tuple[int, ...]) -> bool:
    """Tell whether a back computes nothing but the layer, with a bias."""
    if layer.bias is None or layer.in_features != math.prod(shape):
        return False
    x = torch.linspace(-2, 2, 2 * math.prod(shape), device=layer.weight.device).view(2, *shape)
    training = back.training
    same = torch.allclose(back.eval()(x), layer(x.flatten(1)), rtol=1e-4, atol=1e-5)
    back.train(training)
    return same


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
    layer = single_layer(back, tuple(smashed.shape[1:]))
    for label in range(layer.out_features):
        own = smashed[labels == label].flatten(1)
        if not len(own):
            layer.weight[label], layer.bias[label] = 0.0, -torch.inf
            continue
        mean = own.mean(0)
        spread = own.var(0).sum() / len(own) if len(own) > 1 else 0.0
        layer.weight[label] = mean
        layer.bias[label] = -(mean.square().sum() - spread) / 2
