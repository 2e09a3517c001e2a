"""The whole model before it is cut: built, with weights from elsewhere, and what of it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pudica import models
from pudica.clients.shields import ShieldConfig
from pudica.clients.shields.accounting import calibrate
from pudica.models.errors import RequestError
from pudica.models.files import load_weights
from pudica.models.randomness import derive
from pudica.strategies.split.config import PRETRAINED, TORCHVISION, SplitConfig
from pudica.strategies.split.reporting import compute_test_share


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
    channels, side, _ = shape
    model = models.build(
        settings.model,
        num_classes=classes,
        channels=channels,
        image_size=side,
        seed=derive(seed, "weights"),
    )
    if settings.weights == TORCHVISION:
        from pudica.models import published  # slow to import

        start_from(model, published.load_weights(settings.model), TORCHVISION)
    elif settings.weights and settings.weights != PRETRAINED:
        start_from(model, load_weights(Path(settings.weights)), settings.weights)
    if settings.train == "last-layer":
        freeze_all_but_last(model)
    return model


def start_from(model: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> list[str]:
    """Put weights into a model; return the names of those that start afresh.

    Raises
    ------
    RequestError
        If not one of them fits.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise RequestError(
            f"weights: {where} holds nothing that fits the model: its first entry is "
            f"'{next(iter(weights), '(none)')}', the model's '{next(iter(own))}'"
        )
    model.load_state_dict({**own, **fitting})
    return [name for name in own if name not in fitting]


def freeze_all_but_last(model: nn.Module) -> None:
    """Let nothing but the last layer that has weights learn."""
    layers = [layer for layer in model.modules() if any(True for _ in layer.parameters(False))]
    model.requires_grad_(False)
    layers[-1].requires_grad_(True)


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
