"""A device: each activation is clipped, and leaves once, behind secret noise."""

from flwr.app import Context

from cutting.task import CLASSES, back, front, share
from pudica.clients import Edge
from pudica.clients.shields import ClipGaussian


def edge(context: Context) -> Edge:
    """Return who this node is."""
    place, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    shield = ClipGaussian(epsilon=context.run_config["epsilon"], delta=1e-5, clip=1.0)
    return Edge(
        front(),
        share("train", place, nodes),
        share("test", place, nodes),
        shield=shield,
        back=back(),
        classes=CLASSES,
        name=f"device-{place}",
    )


app = Edge.app(edge)
