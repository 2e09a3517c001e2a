"""The first exchanges of every system: who is there, does everyone run the same code, on what."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.assignments import Assignment
from pudica.models.compute import ComputeConfig
from pudica.models.naming import validate_node_name
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.members import Images, Member, describe_images
from pudica.strategies.core.reliable_grid import TooFewParticipants

Words = dict[str, protocol.Scalar]
T = TypeVar("T")

JOIN_SECONDS = 120.0
WAIT_SECONDS = 0.2
# In a simulation all nodes are there at once: who is not there then will hardly come.
COMPLETE_SECONDS = 10.0
MOST_NODES = 10**9


def gather(cohort: Cohort, names: list[str], minimum: int) -> dict[str, int]:
    """Wait for the nodes, check their code, and return the node id of each name.

    Partition i plays the i-th name; in a deployment, the node that was registered as the i-th.
    A node that runs other code than the server is left out.

    Raises
    ------
    RuntimeError
        Too few nodes.
    """
    return greeted(cohort, names, _wait_for_nodes(cohort, names, minimum))


def greeted(cohort: Cohort, names: list[str], nodes: dict[str, int]) -> dict[str, int]:
    """Return the node id of each name that one of some nodes plays; as of :func:`gather`."""
    entries = cohort.registered
    # A competition's participants have the names they were registered by; devices, owners and
    # edges are numbered in that order.
    by_name = set(names) <= {entry.name for entry in entries}
    places = {
        entry.node: (names.index(entry.name) if entry.name in names else -1) if by_name else place
        for place, entry in enumerate(entries)
    }
    everyone = cohort.beside(nodes)
    hello = protocol.request({"run": cohort.recorder.name})
    placed: dict[str, int] = {}
    event = cohort.recorder.event
    greetings = everyone.send_and_receive(protocol.HELLO, dict.fromkeys(nodes, hello), _greeting)
    for node, (partition, code) in greetings.items():
        # A registered node's place is its key's; what it says itself does not count.
        partition = places.get(nodes[node], -1) if places else partition
        if code != protocol.code_fingerprint():
            known = 0 <= partition < len(names)
            cohort.grid.names[nodes[node]] = names[partition] if known else f"node {node}"
            cohort.grid.reject(nodes[node], _other_code(code))
        elif not 0 <= partition < len(names):
            event(f"node {node} has partition {partition}, which nobody plays")
        elif names[partition] in placed:
            event(f"node {node} says it has partition {partition} too; ignored")
        else:
            placed[names[partition]] = nodes[node]
    return {name: placed[name] for name in names if name in placed}


def _wait_for_nodes(cohort: Cohort, names: list[str], minimum: int) -> dict[str, int]:
    """Return the nodes once all are there; ids are random per run."""
    entries = cohort.registered
    # Of those that the organiser has removed nobody comes.
    wanted = min(len(names), len(entries)) if entries else len(names)
    began = time.monotonic()
    waiting = f"waiting for {wanted} nodes"
    while len(found := sorted(cohort.grid.get_node_ids())) < wanted:
        if time.monotonic() - began > JOIN_SECONDS:
            break
        if entries:  # in a simulation they are there at once
            cohort.recorder.progress(waiting, len(found), wanted, "node")
        time.sleep(0.2)
    if len(found) < max(1, minimum):
        raise RuntimeError(
            f"only {len(found)} of {wanted} nodes were there after {JOIN_SECONDS:g} s; start more "
            f"nodes, or give the simulation num-supernodes={wanted}"
        )
    there = names_of(cohort, found)
    if len(found) < wanted:
        away = ", ".join(entry.name for entry in entries if entry.name not in there)
        without = f", without {away}" if away else ""
        cohort.recorder.event(f"starting with {len(found)} of {wanted} nodes{without}")
    return there


def names_of(cohort: Cohort, nodes: Iterable[int]) -> dict[str, int]:
    """Return nodes' ids by what to call them before they have joined: as they are registered."""
    names = {entry.node: entry.name for entry in cohort.registered}
    return {names.get(node, str(node)): node for node in nodes}


def _greeting(_: str, content: RecordDict) -> tuple[int, str]:
    words = protocol.words_of(content)
    return protocol.whole(words, "partition", -1, MOST_NODES), protocol.text(words, "code")


def _other_code(code: str) -> str:
    return (
        f"it runs other code (fingerprint {code[:32]}) than the server "
        f"({protocol.code_fingerprint()}): install the same version of pudica on both, and start "
        "the node again"
    )


def base_assignments(experiment: Experiment, run: str, deployed: bool) -> dict[str, dict[str, Any]]:
    """Return by name what the assignment of each node says, whatever the system."""
    compute = experiment.client.model_dump(include=set(ComputeConfig.model_fields))
    names = experiment.names()
    here: dict[str, Any] = {}
    if deployed:
        # Where the organiser's own files lie is nobody's business, and of no use elsewhere. Nodes
        # with images of their own match their classes and attributes to these by name.
        own, data = {"root", "path", "key", "splits"}, experiment.load_shared()
        here = dict.fromkeys(own) | {
            "classes": tuple(data.class_names),
            "attribute_names": tuple(data.attributes) or None,
        }
    common = {
        "run": run,
        "data": experiment.data.model_copy(update=here),
        "data_seed": derive(experiment.seed, "data"),
        "partitions": len(names),
        "compute": ComputeConfig(**compute),
    }
    return {name: {**common, "partition": number} for number, name in enumerate(names)}


def introduce(
    cohort: Cohort,
    assignments: Mapping[str, Assignment],
    read: Callable[[Words], T],
    turns: Mapping[str, int] | None = None,
) -> dict[str, T]:
    """Give each node its assignment, ask what data it has, and leave out who does not answer.

    Parameters
    ----------
    read : callable
        Makes sense of what a node says; as of :meth:`Cohort.send_and_receive`.
    turns : mapping of str to int, optional
        To which turn a node of a resumed run goes back; -1: it begins.
    """
    requests = {
        name: protocol.request(
            {
                "run": assignment.run,
                "assignment": assignment.model_dump_json(),
                "turn": (turns or {}).get(name, -1),
            }
        )
        for name, assignment in assignments.items()
        if name in cohort.nodes
    }
    joined = cohort.send_and_receive(
        protocol.JOIN, requests, lambda _, c: read(protocol.words_of(c))
    )
    cohort.nodes = {name: cohort.nodes[name] for name in joined}
    return joined


def agree_on_images(cohort: Cohort, joined: dict[str, Member]) -> Images:
    """Return what kind of images most nodes hold; leave out those that hold others."""
    kinds = {name: (m.shape, m.classes, m.span) for name, m in joined.items()}
    wanted, _ = Counter(kinds.values()).most_common(1)[0]
    for name, own in kinds.items():
        if own != wanted:
            cohort.leave_out(
                name,
                f"it holds {describe_images(own)}, most {describe_images(wanted)}; give all the "
                "same data set, and the same disguise",
            )
            del joined[name]
    agree_on_names(cohort, joined)
    return wanted


def agree_on_names(cohort: Cohort, joined: dict[str, Member], ours: str = "") -> None:
    """Leave out those that name or number their classes otherwise than most that name them.

    Parameters
    ----------
    ours : str
        A fingerprint of the server's own names, where it has some: these count instead.
    """
    known = {name: member.names for name, member in joined.items() if member.names}
    if not known:
        return
    wanted = ours or Counter(known.values()).most_common(1)[0][0]
    whose = "the server's" if ours else "those of most"
    for name, own in known.items():
        if own != wanted:
            cohort.leave_out(
                name,
                f"its classes have other names than {whose}, or another order; give all the same "
                "classes in the same order",
            )
            del joined[name]


# ----------------------------------------------------------- nodes that run somebody's own app


class JoinReply(NamedTuple):
    """What a node of somebody's own app says when it joins."""

    name: str
    member: Member
    content: str


def join_own_apps(
    cohort: Cohort,
    request: Mapping[str, protocol.Scalar],
    minimum: int,
    timeout: float,
    read: Callable[[Words], Member] = Member.read,
    agree: Callable[[Cohort, dict[str, Member]], object] = agree_on_images,
) -> dict[str, Member]:
    """Let nodes join whose apps hold model and data already; return what they hold, by name.

    They are put in the order of their partitions. Who runs another version of Pudica, holds other
    images than most, or has another's name is left out.

    Parameters
    ----------
    read : callable
        Makes sense of what a node says of its data; KeyError or ValueError if it makes none.
    agree : callable
        Leaves out those that do not fit the others, as of :func:`agree_on_images`.

    Raises
    ------
    TooFewParticipants
        Fewer than ``minimum`` are there by ``timeout``, or fit.
    """
    there = _wait_for_own_apps(cohort, minimum, timeout)
    greeting = protocol.request({"run": cohort.recorder.name})
    greeted = cohort.beside({str(node): node for node in there})
    greetings = greeted.send_and_receive(
        protocol.HELLO, dict.fromkeys(greeted.nodes, greeting), _greeting
    )
    for node, (_, code) in list(greetings.items()):
        if code != protocol.code_fingerprint():
            greeted.leave_out(node, _other_code(code))
            del greetings[node]
    content = protocol.request({"run": cohort.recorder.name, **request})
    apps = greeted.send_and_receive(
        protocol.JOIN, dict.fromkeys(greetings, content), lambda _, c: _own_app(c, read)
    )
    ordered = sorted(apps, key=lambda node: (greetings[node][0], apps[node].name))
    joined: dict[str, Member] = {}
    nodes: dict[str, int] = {}
    for node in ordered:
        name = apps[node].name
        if name in joined:
            greeted.reject(node, f"another node is called {name}, too; give each a name of its own")
            continue
        joined[name], nodes[name] = apps[node].member, greeted.nodes[node]
    cohort.nodes = nodes
    greeted.require_min_replies(minimum, len(joined), protocol.JOIN)
    agree(cohort, joined)
    cohort.require_min_replies(minimum, len(joined), protocol.JOIN)
    return joined


def _wait_for_own_apps(cohort: Cohort, minimum: int, timeout: float) -> list[int]:
    """Return the nodes that are there, once they are enough."""
    if getattr(cohort.grid.grid, "is_complete", False):
        timeout = min(timeout, COMPLETE_SECONDS)
    began, reported = time.monotonic(), -1
    while len(there := sorted(cohort.grid.get_node_ids())) < minimum:
        if len(there) != reported:
            reported = len(there)
            cohort.recorder.event(f"waiting for {minimum} nodes; {reported} are there")
        if time.monotonic() - began > timeout:
            raise TooFewParticipants(
                f"min_nodes: {minimum} nodes are needed, {len(there)} were there after "
                f"{timeout:g} s; start more, or lower min_nodes"
            )
        time.sleep(min(WAIT_SECONDS, timeout))
    return there


def _own_app(content: RecordDict, read: Callable[[Words], Member]) -> JoinReply:
    words = protocol.words_of(content)
    name = validate_node_name(protocol.text(words, "name"))
    return JoinReply(name, read(words), protocol.text(words, "content"))
