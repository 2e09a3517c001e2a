"""An owner: images stay here, and the network sees them disguised only."""

from flwr.app import Context

from disguised.task import network, share
from pudica.clients import Owner
from pudica.clients.shields import Disguise
from pudica.clients.shields.disguises import Key
from pudica.models.training import TrainingConfig


def owner(context: Context) -> Owner:
    """Return who this node is."""
    place, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    shield, seed = str(context.run_config["shield"]), int(context.run_config["key"])
    # All owners have one key. Real ones share a file, which Disguise(…, key="own.key") reads.
    disguise = Disguise(Key.from_seed(shield, (1, 8, 8), seed)) if shield else None
    return Owner(
        network(),
        share("train", place, nodes),
        share("test", place, nodes),
        disguise=disguise,
        training=TrainingConfig(learning_rate=0.05, batch_size=32),
        name=f"owner-{place}",
    )


app = Owner.app(owner)
