"""``pudica cuts``: where a model can be cut, and what each cut costs an edge device."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pudica import models
from pudica.models.cut import CutCost, Cutter, cutting_cost
from pudica.models.errors import RequestError
from pudica.strategies.facemix.costs import stage_costs

MEBI = 2**20


def build_cut_table(
    model: str,
    shape: tuple[int, int, int],
    num_classes: int,
    batch: int,
    epsilon: float,
    weights: Sequence[float],
) -> pd.DataFrame:
    """Return a table with a row for each possible cut of a model.

    Memory is that of a batch; ε is of one activation and the same at each cut; the weights are of
    privacy, resources and accuracy in the cost.

    Raises
    ------
    RequestError
        If the model does not exist, does not fit the images or can't be cut.
    """
    _, costs = _compute_costs(model, shape, num_classes, batch)
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


def build_stage_table(
    model: str, shape: tuple[int, int, int], num_classes: int, post: str
) -> pd.DataFrame:
    """Return a table with a row for each layer after which the first of three stages can end.

    Raises
    ------
    RequestError
        As for :func:`build_cut_table`; or if the last stage can't begin after the layer ``post``,
        or no stage can end before it.
    """
    cutter, cuts = _compute_costs(model, shape, num_classes, 2)
    rows = []
    for cut in cuts[: cutter.index_of(post)]:
        costs = stage_costs(*cutter.cut_stages(cut.name, post), shape)
        rows.append(
            {
                "pre": cut.name,
                "layer": cut.layer,
                "crosses": "x".join(map(str, cut.shape)),
                "edge parameters": int(costs["edge_parameters"]),
                "edge MMAC": costs["edge_macs"] / 1e6,
                "share %": 100 * costs["edge_macs"] / costs["macs"] if costs["macs"] else 0.0,
                "bytes up": int(costs["bytes_up"]),
                "bytes down": int(costs["bytes_down"]),
            }
        )
    if not rows:
        raise RequestError(f"--post: no stage could end before '{post}'")
    return pd.DataFrame(rows)


def _compute_costs(
    model: str, shape: tuple[int, int, int], num_classes: int, batch: int
) -> tuple[Cutter, list[CutCost]]:
    cutter = Cutter(models.build_for(model, shape, num_classes=num_classes))
    return cutter, cutter.compute_costs(shape, batch)


def find_best_cut(frame: pd.DataFrame) -> str:
    """Return the cheapest cut that leaves parameters on the edge, or ""."""
    cuts = frame[frame["edge parameters"] > 0]
    return str(cuts["cut"].iloc[int(cuts["cost"].argmin())]) if len(cuts) else ""
