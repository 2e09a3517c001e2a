"""An edge: images, keys and predictions stay here."""

import numpy as np
from flwr.app import Context

from mixed.task import share, stages
from pudica.clients import InferenceEdge
from pudica.clients.shields import Mixing


def show(rows: np.ndarray, predictions: np.ndarray) -> None:
    """See what the images of a request show; an app would act on it."""
    print(f"{len(rows)} images, the first a {predictions[0]}")


def edge(context: Context) -> InferenceEdge:
    """Return who this node is."""
    place, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    pre, _, post = stages()
    return InferenceEdge(
        pre,
        post,
        share(place, nodes),
        mixing=Mixing(group=int(context.run_config["group"])),
        keys=str(context.run_config["keys"]),
        on_predictions=show,
        name=f"edge-{place}",
    )


app = InferenceEdge.app(edge)
