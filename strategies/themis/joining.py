"""The first exchanges: who is there, does everyone run the same code on the same data."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pudica.clients import protocol
from pudica.clients.assignments import ParticipantAssignment
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import base_assignments, gather, greeted, introduce, names_of
from pudica.strategies.themis.organiser import Organiser

REFUSED_SECONDS, DOOR_SECONDS = 60.0, 60.0


def join(organiser: Organiser) -> None:
    """Wait for the nodes, give each its participant, leave out who has other code or data.

    Raises
    ------
    RuntimeError
        Too few nodes.
    """
    cohort, minimum = organiser.cohort, organiser.settings.min_participants
    recorder = organiser.recorder
    # Newcomers come in by the door between stages; those who did are back after a resume.
    names = [
        name
        for name in organiser.experiment.names()
        if name in recorder.experiment.names() or recorder.is_finished(f"local/{name}")
    ]
    remarks = organiser.experiment.remarks(organiser.data) if cohort.registry else []
    for remark in remarks:
        recorder.event(remark)
    recorder.run["remarks"] = remarks
    cohort.nodes = gather(cohort, names, minimum)
    _introduce(organiser, cohort)
    cohort.require_min_replies(minimum, len(cohort.nodes), protocol.JOIN)


def admit(organiser: Organiser) -> list[str]:
    """Let in who is there by now, and was not before; return their names.

    Whoever does not get in is looked at again later and later: the door is not to be blocked.
    """
    cohort, now = organiser.cohort, time.monotonic()
    known = set(cohort.nodes.values())
    known |= {node for node, (until, _) in organiser.refused.items() if now < until}
    there = names_of(
        cohort, (node for node in sorted(cohort.grid.get_node_ids()) if node not in known)
    )
    if not there:
        return []
    for node in there.values():
        _, pause = organiser.refused.get(node, (0.0, REFUSED_SECONDS))
        organiser.refused[node] = now + pause, 2 * pause
    organiser.meet_newcomers()
    names = organiser.experiment.names()
    door = cohort.beside({}, timeout=DOOR_SECONDS)
    door.nodes = greeted(door, names, there)
    _introduce(organiser, door)
    for name in door.nodes:
        organiser.recorder.event(f"{name} joins")
        organiser.refused.pop(door.nodes[name], None)
    nodes = {**cohort.nodes, **door.nodes}
    cohort.nodes = {name: nodes[name] for name in names if name in nodes}
    return list(door.nodes)


def _introduce(organiser: Organiser, cohort: Cohort) -> None:
    """Give nodes their participants; leave out those who hold other data."""

    def read(words: Mapping[str, protocol.Scalar]) -> bool:
        if problem := _other_data(organiser, words):
            raise ValueError(problem)
        return True

    for name in introduce(cohort, _assignments(organiser), read):
        organiser.recorder.check_key(name, organiser.data.key)


def _assignments(organiser: Organiser) -> dict[str, ParticipantAssignment]:
    experiment = organiser.experiment
    # Where the test set can be kept from participants, they look at no image of it.
    kept_back = {"split": "public"} if organiser.data.has_own_test else {}
    shown = experiment.data.model_copy(update=kept_back)
    common = base_assignments(
        experiment.model_copy(update={"data": shown}),
        organiser.run,
        deployed=organiser.cohort.registry is not None,
    )
    return {
        participant.name: ParticipantAssignment(
            **common[participant.name],
            participant=participant,
            training=experiment.training,
            training_seed=derive(experiment.seed, "participant", participant.name),
        )
        for participant in experiment.participants
    }


def _other_data(organiser: Organiser, words: Mapping[str, protocol.Scalar]) -> str:
    """Return in which way a participant's data are others than the organiser's, if they are."""
    own = organiser.data
    key, fingerprint, classes, shape = (
        str(words.get(name, "")) for name in ("key", "fingerprint", "classes", "shape")
    )
    if key != own.key:
        return (
            f"it disguises its images with the key {key or '(none)'}, the organiser "
            f"with {own.key or '(none)'}; give both the same"
        )
    if fingerprint != own.fingerprint:
        return (
            f"it holds other data than the organiser: {classes} classes of shape "
            f"{shape} against {own.num_classes} of shape "
            f"{'x'.join(map(str, own.shape))}; give both the same data set"
        )
    return ""
