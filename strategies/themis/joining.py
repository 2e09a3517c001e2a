"""The first exchanges: who is there, does everyone run the same code on the same data."""

from __future__ import annotations

from clients import protocol
from clients.assignments import ParticipantAssignment
from models.randomness import derive
from strategies.joining import gather, introduce, told
from strategies.roster import home
from strategies.themis.organiser import Organiser


def join(organiser: Organiser) -> None:
    """Wait for the nodes, give each its participant, leave out who has other code or data.

    Raises
    ------
    RuntimeError
        Too few nodes.
    """
    exchanges = organiser.exchanges
    names, minimum = organiser.experiment.names(), organiser.settings.min_participants
    if home() and not organiser.data.own_test:
        organiser.recorder.event(
            "a rehearsal: the test set is no split of its own (data.split: own), so participants "
            "hold its images and labels too"
        )
    exchanges.nodes = gather(exchanges, names, minimum)
    for name, words in introduce(exchanges, _assignments(organiser), dict).items():
        if problem := _other_data(organiser, words):
            exchanges.reject(name, problem)
            del exchanges.nodes[name]
        else:
            organiser.recorder.met_key(name, organiser.data.key)
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


def _other_data(organiser: Organiser, words: dict[str, protocol.Scalar]) -> str:
    """Return in which way a participant's data are others than the organiser's, if they are."""
    own = organiser.data
    if words.get("key") != own.key:
        return (
            f"it disguises its images with the key {words.get('key') or '(none)'}, the organiser "
            f"with {own.key or '(none)'}; give both the same"
        )
    if words.get("fingerprint") != own.fingerprint:
        return (
            f"it holds other data than the organiser: {words.get('classes')} classes of shape "
            f"{words.get('shape')} against {own.num_classes} of shape "
            f"{'x'.join(map(str, own.shape))}; give both the same data set"
        )
    return ""
