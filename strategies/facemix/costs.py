"""What one image costs the edge, and what crosses for it."""

from __future__ import annotations

import math

from clients.shields.front import activation_shape
from clients.shields.mixing import group_of, whole_groups
from models.cut import flops
from strategies.facemix.config import WIRE_BYTES
from strategies.facemix.session import Session

COSTS = "costs"


def log_costs(session: Session) -> None:
    """Log parameters and multiplications of the edge, its share of all, and bytes each way."""
    for metric, value in costs(session).items():
        session.log(COSTS, metric, value)


def costs(session: Session) -> dict[str, float]:
    """Return what an image costs in one case.

    Returns
    -------
    dict
        ``edge_parameters``; ``edge_macs`` and ``macs``: multiplications (each with an addition)
        of convolutions, matrix products and mixing, on the edge and in all; ``bytes_up`` and
        ``bytes_down``.
    """
    settings, model, image = session.settings, session.model, session.data.shape
    sent = tuple(model.shield.shape)
    returned = activation_shape(model.main, sent)
    inside, outside = math.prod(sent), math.prod(returned)
    group = group_of(settings.around)
    # Decoys fill a request's last group, and pass the first stage too.
    filled = whole_groups(settings.request, settings.around) / settings.request
    mixing = filled * group * (inside + outside) if group > 1 else 0
    ends = filled * flops(model.pre, image) + flops(model.post, returned)
    crosses = settings.place != "edge"
    each = WIRE_BYTES[settings.wire] if crosses else 0
    return {
        "edge_parameters": sum(p.numel() for p in model.ends.parameters()),
        "edge_macs": ends / 2 + mixing,
        "macs": (ends + filled * flops(model.main, sent)) / 2 + mixing,
        "bytes_up": each * inside * filled,
        "bytes_down": each * outside * filled,
    }
