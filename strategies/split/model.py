"""The model: built, tried, as a strategy's arrays, and which of its layers learn."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from pudica import models
from pudica.clients.shields import ShieldConfig
from pudica.clients.shields.accounting import calibrate
from pudica.models.errors import RequestError
from pudica.models.files import load_weights
from pudica.models.randomness import derive
from pudica.models.trial import apply_layers, count_logits
from pudica.strategies.split.config import PRETRAINED, TORCHVISION, SplitConfig
from pudica.strategies.split.reporting import compute_test_share

FRONT, BACK = "front", "back"
TRIED = 2
"""Images on which a model is tried."""


# ------------------------------------------------------------------------------- to begin


def build_model(
    settings: SplitConfig, classes: int, shape: tuple[int, int, int], seed: int
) -> nn.Module:
    """Return the model as training begins, but for weights from pretraining.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width of an image.
    seed : int
        The run's.

    Raises
    ------
    RequestError
        If the model or its weights do not exist, or do not fit.
    """
    model = models.build_for(
        settings.model, shape, num_classes=classes, seed=derive(seed, "weights")
    )
    if settings.weights == TORCHVISION:
        from pudica.models import published  # slow to import

        start_from(model, published.load_weights(settings.model), TORCHVISION)
    elif settings.weights and settings.weights != PRETRAINED:
        start_from(model, load_weights(Path(settings.weights)), settings.weights)
    if settings.train == "last-layer":
        freeze_all_but_last(model)
    return model


def start_from(model: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights into a model, as far as they fit; RequestError if none does."""
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise RequestError(
            f"weights: {where} holds nothing that fits the model: its first entry is "
            f"'{next(iter(weights), '(none)')}', the model's '{next(iter(own))}'"
        )
    model.load_state_dict({**own, **fitting})


def calibrate_shield(settings: SplitConfig) -> ShieldConfig:
    """Return the shield's settings; with a budget, those that keep to it.

    Raises
    ------
    RequestError
        If there is no calibration for the shield.
    """
    budget = settings.budget
    if budget is None or not settings.releases:
        return settings.shield
    releases = budget.releases or settings.releases
    try:
        # What keeps within a budget bounds each example alone, whatever its shape.
        epsilon = budget.epsilon - compute_test_share(settings)
        return calibrate(settings.shield, epsilon, budget.delta, releases, (1,), 1)
    except RequestError as error:
        raise RequestError(f"budget: {error}") from error


# ------------------------------------------------------------------------------- its parts


def try_model(
    front: nn.Module, back: nn.Module, shape: tuple[int, int, int]
) -> tuple[tuple[int, ...], int]:
    """Return the shape of one example's activation, and the number of classes.

    The images have no values, which takes no memory, unless the model's own code looks at them:
    then they are black.

    Raises
    ------
    RequestError
        The model does not accept images of this shape, or its output is no logits.
    """
    try:
        ghost_front, ghost_back = (copy.deepcopy(part).to("meta") for part in (front, back))
        return _try(ghost_front, ghost_back, torch.empty(TRIED, *shape, device="meta"))
    except RequestError as error:
        needs_values = isinstance(error.__cause__, NotImplementedError) or "meta" in str(error)
        if not needs_values:
            raise
    return _try(front, back, torch.zeros(TRIED, *shape))


def _try(front: nn.Module, back: nn.Module, x: torch.Tensor) -> tuple[tuple[int, ...], int]:
    activations = apply_layers("front", front, "images", x)
    classes = count_logits("back", back, "activations", activations)
    if classes < 2:
        raise RequestError("back: must tell two classes apart at least")
    return tuple(activations.shape[1:]), classes


def freeze_all_but_last(model: nn.Module) -> None:
    """Let nothing but the last layer that has weights learn."""
    model.requires_grad_(False)
    _weighted_layers(model)[-1].requires_grad_(True)


def _weighted_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if any(True for _ in layer.parameters(False))]


# ------------------------------------------------------------------------------ as arrays


def _state(front: nn.Module, back: nn.Module) -> dict[str, torch.Tensor]:
    return nn.ModuleDict({FRONT: front, BACK: back}).state_dict()


def model_arrays(front: nn.Module, back: nn.Module) -> ArrayRecord:
    """Return copies of both parts' parameters and buffers, as ``front.…`` and ``back.…``."""
    found = _state(front, back).items()
    return ArrayRecord({name: Array(value.detach().cpu().numpy().copy()) for name, value in found})


@torch.no_grad()
def load_arrays_into(
    front: nn.Module, back: nn.Module, arrays: ArrayRecord, parts: Iterable[str] = (FRONT, BACK)
) -> None:
    """Copy arrays into a model.

    Parameters
    ----------
    parts : iterable of str
        Of the model; arrays of others are ignored.

    Raises
    ------
    RequestError
        A key that is missing or superfluous, or an array of another shape, by name.
    """
    own = _state(front, back)
    if odd := sorted(set(own) ^ set(arrays)):
        what = "missing" if odd[0] in own else "not of this model"
        raise RequestError(
            f"arrays: '{odd[0]}' is {what}; a model's are called {', '.join(list(own)[:4])}, …"
        )
    for name, tensor in own.items():
        if tuple(arrays[name].shape) != tuple(tensor.shape):
            raise RequestError(
                f"arrays: '{name}' of shape {tuple(arrays[name].shape)}, the model's is "
                f"{tuple(tensor.shape)}"
            )
    for name, tensor in own.items():
        if name.partition(".")[0] in parts:
            tensor.copy_(torch.from_numpy(arrays[name].numpy().copy()))


def fingerprint(front: nn.Module, back: nn.Module) -> str:
    """Return what tells a model from others by its arrays' names and shapes."""
    shapes = [(name, tuple(value.shape)) for name, value in _state(front, back).items()]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest()


# ---------------------------------------------------------- a linear back from class means


@torch.no_grad()
def single_layer(back: nn.Module, shape: tuple[int, ...]) -> nn.Linear:
    """Return the linear layer that a back consists of; RequestError if there is more to it.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.
    """
    layer, *others = _weighted_layers(back) or [back]
    if others or not isinstance(layer, nn.Linear) or not _is_all(back, layer, shape):
        raise RequestError(
            "fit: 'means' needs a back that is a single linear layer; choose a later cut, or sgd"
        )
    return layer


def _is_all(back: nn.Module, layer: nn.Linear, shape: tuple[int, ...]) -> bool:
    """Tell whether a back computes nothing but the layer, with a bias."""
    if layer.bias is None or layer.in_features != math.prod(shape):
        return False
    x = torch.linspace(-2, 2, 2 * math.prod(shape), device=layer.weight.device).view(2, *shape)
    found = apply_layers("back", back, "activations", x)
    return torch.allclose(found, layer(x.flatten(1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def fit_means(back: nn.Module, smashed: torch.Tensor, labels: torch.Tensor) -> None:
    """Let a linear back choose the class whose mean is nearest, which averages noise best.

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
