"""A participant: its network and its labels stay here."""

import torch
from flwr.app import Context

from fair.task import NETWORKS, data, fit
from pudica.clients import Participant


def participant(context: Context) -> Participant:
    """Return who this node is."""
    place = int(context.node_config["partition-id"])
    name = list(NETWORKS)[place]
    torch.manual_seed(place)
    network = NETWORKS[name]()
    return Participant(network, data()["train"], data()["validation"], name=name, training=fit)


app = Participant.app(participant)
