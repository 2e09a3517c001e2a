"""torchvision's models and their published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from pudica.models.architectures import TORCHVISION, ImageTask
from pudica.models.errors import RequestError, unknown_name_error


def build(name: str, task: ImageTask) -> nn.Module:
    """Build a torchvision classifier, such as ``torchvision:vgg16``, with fresh weights.

    Raises RequestError if torchvision has none of that name, or the images are grey.
    """
    if task.channels != 3:
        raise RequestError(f"model '{name}' takes colour images: set data.channels to 3")
    model: nn.Module = torchvision.models.get_model(
        torchvision_name(name), weights=None, num_classes=task.num_classes
    )
    return model


def load_weights(name: str) -> dict[str, torch.Tensor]:
    """Return the weights that torchvision publishes for one of its models.

    They are downloaded once, into ``TORCH_HOME``; only tensors are unpickled. Raises RequestError
    if the model is not torchvision's, or its weights can't be downloaded.
    """
    if not name.startswith(TORCHVISION):
        raise RequestError(
            f"weights: torchvision has none for '{name}'; allowed with model: {TORCHVISION}NAME"
        )
    weights: Any = torchvision.models.get_model_weights(torchvision_name(name)).DEFAULT  # type: ignore[attr-defined]
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
        raise RequestError(
            f"weights: can't download {weights.url} ({error}); put the file at {place}, or name "
            "a safetensors file"
        ) from error
    return state


def torchvision_name(name: str) -> str:
    """Return torchvision's own name of a classifier; raise RequestError if there is none."""
    wanted = name.removeprefix(TORCHVISION)
    names = torchvision.models.list_models(torchvision.models)
    if wanted not in names:
        raise unknown_name_error("model of torchvision", wanted, names)
    return wanted
