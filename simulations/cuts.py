"""``pudica cuts``: where a model can be cut, and what each cut costs an edge device."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

import models
from models.cut import Cutter, cutting_cost
from models.errors import RequestError

MEBI = 2**20


def table(
    model: str,
    shape: tuple[int, int, int],
    num_classes: int,
    batch: int,
    epsilon: float,
    weights: Sequence[float],
) -> pd.DataFrame:
    """Return a row for each cut of a model of the zoo, or a custom one.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width of an image.
    batch : int
        Examples of a batch, for the memory.
    epsilon : float
        Of one activation, the same at each cut.
    weights : sequence of 3 float
        Of privacy, resources and accuracy in the cost.

    Raises
    ------
    RequestError
        If the model does not exist, does not fit the images or can't be cut.
    """
    channels, side, _ = shape
    built = models.build(model, num_classes=num_classes, channels=channels, image_size=side)
    costs = Cutter(built).costs(shape, batch)
    if not costs:
        raise RequestError(f"model '{model}' can't be cut anywhere: it has no inner layer")
    return pd.DataFrame(
        {
            "cut": cost.name,
            "layer": cost.layer,
            "activation": "x".join(map(str, cost.shape)),
            "bytes": cost.bytes,
            "edge parameters": cost.parameters,
            "share %": 100 * cost.share,
            "MFLOP": cost.flops / 1e6,
            f"MiB at batch {batch}": cost.memory / MEBI,
            "cost": cutting_cost(epsilon, cost.share, weights),
        }
        for cost in costs
    )


def best(frame: pd.DataFrame) -> str:
    """Return the cheapest cut that leaves the edge something to compute with, or ""."""
    able = frame[frame["edge parameters"] > 0]
    return str(able["cut"].iloc[int(able["cost"].argmin())]) if len(able) else ""
