"""The first exchanges: who is there, does everyone run the same code on the same data."""

from __future__ import annotations

from clients import protocol
from clients.assignments import ParticipantAssignment
from models.randomness import derive
from strategies.joining import gather, introduce, told
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
    for name, words in introduce(exchanges, _assignments(organiser), dict).items():
        _check_data(organiser, name, words)
    exchanges.need(minimum, len(exchanges.nodes), protocol.JOIN)


def _assignments(organiser: Organiser) -> dict[str, ParticipantAssignment]:
    experiment = organiser.experiment
    # Where the test set can be kept from participants, they look at no image of it.
    kept_back = {"split": "public"} if organiser.data.own_test else {}
    shown = experiment.data.model_copy(update=kept_back)
    common = told(experiment.model_copy(update={"data": shown}), organiser.run)
    return {
        participant.name: ParticipantAssignment(
            **common[participant.name],
            participant=participant,
            training=experiment.training,
            training_seed=derive(experiment.seed, "participant", participant.name),
        )
        for participant in experiment.participants
    }


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
