"""What one image costs the edge, and what crosses for it."""

from __future__ import annotations

import math

from torch import nn

from pudica.clients.shields.base import Shape
from pudica.clients.shields.front import activation_shape
from pudica.clients.shields.mixing import group_size, padded_count
from pudica.models.cut import count_flops
from pudica.strategies.facemix.cloud import StagedStrategy
from pudica.strategies.facemix.config import WIRE_BYTES

COSTS = "costs"


def log_costs(strategy: StagedStrategy) -> None:
    """Log parameters and multiplications of the edge, its share of all, and bytes each way."""
    settings, model = strategy.settings, strategy.model
    costs = stage_costs(
        model.pre,
        model.main,
        model.post,
        strategy.shape,
        group=group_size(settings.around),
        # Decoys fill a request's last group, and pass the first stage too.
        filled=padded_count(settings.request, settings.around) / settings.request,
        each=WIRE_BYTES[settings.wire] if settings.place != "edge" else 0,
    )
    for metric, value in costs.items():
        strategy.log(COSTS, metric, value, round=0)


def stage_costs(
    pre: nn.Module,
    main: nn.Module,
    post: nn.Module,
    image: Shape,
    *,
    group: int = 1,
    filled: float = 1.0,
    each: int = 4,
) -> dict[str, float]:
    """Return what an image costs in three stages.

    ``edge_parameters``; ``edge_macs`` and ``macs``: multiplications (each with an addition) of
    convolutions, matrix products and mixing, on the edge and in all; ``bytes_up``, ``bytes_down``.

    Parameters
    ----------
    image : tuple of int
        Channels, height and width.
    group : int
        Images that are mixed with each other; 1: none are.
    filled : float
        Images that cross for one, decoys included.
    each : int
        Bytes of a number that crosses.
    """
    sent = activation_shape(pre, image)
    returned = activation_shape(main, sent)
    inside, outside = math.prod(sent), math.prod(returned)
    mixing = filled * group * (inside + outside) if group > 1 else 0
    ends = filled * count_flops(pre, image) + count_flops(post, returned)
    return {
        "edge_parameters": sum(p.numel() for end in (pre, post) for p in end.parameters()),
        "edge_macs": ends / 2 + mixing,
        "macs": (ends + filled * count_flops(main, sent)) / 2 + mixing,
        "bytes_up": each * inside * filled,
        "bytes_down": each * outside * filled,
    }
