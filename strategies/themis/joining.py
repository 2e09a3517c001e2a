"""The first exchanges: who is there, does everyone run the same code on the same data."""

from __future__ import annotations

from flwr.app import RecordDict

from clients import protocol
from clients.assignments import ParticipantAssignment
from models.compute import ComputeConfig
from models.randomness import derive
from strategies.joining import gather
from strategies.themis.organiser import Organiser


def join(organiser: Organiser) -> None:
    """Wait for the nodes, check their code, give each its participant, check their data.

    Raises
    ------
    RuntimeError
        Too few nodes, or a node with other code or other data than the organiser.
    """
    exchanges = organiser.exchanges
    names, minimum = organiser.experiment.names(), organiser.settings.min_participants
    exchanges.nodes = gather(exchanges, names, minimum)
    joined = exchanges.ask(protocol.JOIN, _assignments(organiser), protocol.words_of)
    for name, words in joined.items():
        _check_data(organiser, name, words)
    exchanges.nodes = {name: exchanges.nodes[name] for name in joined}
    exchanges.need(organiser.settings.min_participants, len(joined), protocol.JOIN)


def _assignments(organiser: Organiser) -> dict[str, RecordDict]:
    experiment = organiser.experiment
    compute = experiment.client.model_dump(include=set(ComputeConfig.model_fields))
    requests = {}
    for number, participant in enumerate(experiment.participants):
        assignment = ParticipantAssignment(
            run=organiser.run,
            participant=participant,
            training=experiment.training,
            data=experiment.data,
            data_seed=derive(experiment.seed, "data"),
            training_seed=derive(experiment.seed, "participant", participant.name),
            partition=number,
            partitions=len(experiment.participants),
            compute=ComputeConfig(**compute),
        )
        if participant.name in organiser.exchanges.nodes:
            requests[participant.name] = protocol.request(
                {"run": organiser.run, "assignment": assignment.model_dump_json()}
            )
    return requests


def _check_data(organiser: Organiser, name: str, words: dict[str, protocol.Scalar]) -> None:
    own = organiser.data
    if words.get("key") != own.key:
        raise RuntimeError(
            f"{name} disguises its images with the key {words.get('key') or '(none)'}, the "
            f"organiser with {own.key or '(none)'}; give both the same"
        )
    organiser.recorder.met_key(name, own.key)
    if words.get("fingerprint") != own.fingerprint:
        raise RuntimeError(
            f"{name} holds other data than the organiser: {words.get('classes')} classes of shape "
            f"{words.get('shape')} against {own.num_classes} of shape "
            f"{'x'.join(map(str, own.shape))}; give both the same data set"
        )
