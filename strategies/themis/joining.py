"""The first exchanges: which nodes are there, do all run the same code on the same data."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pudica.clients import protocol
from pudica.clients.assignments import ParticipantAssignment
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import base_assignments, gather, greeted, introduce, names_of
from pudica.strategies.themis.organiser import Organiser

LOOK_SECONDS = 5.0
"""Between two looks for newcomers."""
REPLY_SECONDS = 60.0
"""For a newcomer to reply."""
RETRY_SECONDS = 60.0
"""Until a node that did not get in is asked again, each time twice as long."""


def join(organiser: Organiser) -> None:
    """Wait for the nodes, give each its participant, leave out those with other code or data.

    Raises
    ------
    RuntimeError
        Too few nodes.
    """
    cohort, minimum = organiser.cohort, organiser.settings.min_participants
    recorder = organiser.recorder
    # Newcomers are let in between stages; those who were are back after a resume.
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


class Admission:
    """Lets in, between stages, nodes that were not there before."""

    def __init__(self, organiser: Organiser) -> None:
        self.organiser = organiser
        self._next_look = float("-inf")
        # By node id: when to ask a node that was refused again, and how long to wait after that.
        self._retries: dict[int, tuple[float, float]] = {}

    def admit(self) -> list[str]:
        """Let in who is there by now, looking every few seconds; return the newcomers' names.

        Refused nodes are asked again ever more rarely, so that they do not hold up the others.
        """
        organiser, cohort, now = self.organiser, self.organiser.cohort, time.monotonic()
        if now < self._next_look:
            return []
        self._next_look = now + LOOK_SECONDS
        known = set(cohort.nodes.values())
        known |= {node for node, (retry, _) in self._retries.items() if now < retry}
        unknown = [node for node in sorted(cohort.grid.get_node_ids()) if node not in known]
        candidates = names_of(cohort, unknown)
        if not candidates:
            return []
        for node in unknown:
            _, pause = self._retries.get(node, (0.0, RETRY_SECONDS))
            self._retries[node] = now + pause, 2 * pause
        organiser.add_newcomers()
        names = organiser.experiment.names()
        newcomers = cohort.beside({}, timeout=REPLY_SECONDS)
        newcomers.nodes = greeted(newcomers, names, candidates)
        _introduce(organiser, newcomers)
        for name, node in newcomers.nodes.items():
            organiser.recorder.event(f"{name} joins")
            self._retries.pop(node, None)
        nodes = {**cohort.nodes, **newcomers.nodes}
        cohort.nodes = {name: nodes[name] for name in names if name in nodes}
        return list(newcomers.nodes)


def _introduce(organiser: Organiser, cohort: Cohort) -> None:
    """Give nodes their participants; leave out those that hold other data."""
    experiment = organiser.experiment
    # If the test set can be kept from participants, they do not read any image of it.
    split = {"split": "public"} if organiser.data.has_own_test else {}
    data = experiment.data.model_copy(update=split)
    common = base_assignments(
        experiment.model_copy(update={"data": data}),
        organiser.run,
        deployed=cohort.registry is not None,
    )
    assignments = {
        participant.name: ParticipantAssignment(
            **common[participant.name],
            participant=participant,
            training=experiment.training,
            training_seed=derive(experiment.seed, "participant", participant.name),
        )
        for participant in experiment.participants
    }

    def read(words: Mapping[str, protocol.Scalar]) -> bool:
        _check_data(organiser, words)
        return True

    for name in introduce(cohort, assignments, read):
        organiser.recorder.check_key(name, organiser.data.key)


def _check_data(organiser: Organiser, words: Mapping[str, protocol.Scalar]) -> None:
    """Raise ValueError if a participant's data differ from the organiser's."""
    own = organiser.data
    key, fingerprint, classes, shape = (
        str(words.get(name, "")) for name in ("key", "fingerprint", "classes", "shape")
    )
    if key != own.key:
        raise ValueError(
            f"it disguises its images with the key {key or '(none)'}, the organiser "
            f"with {own.key or '(none)'}; give both the same"
        )
    if fingerprint != own.fingerprint:
        raise ValueError(
            f"it holds other data than the organiser: {classes} classes of shape "
            f"{shape} against {own.num_classes} of shape "
            f"{'x'.join(map(str, own.shape))}; give both the same data set"
        )
