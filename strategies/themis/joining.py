"""The first exchanges: who is there, does everyone run the same code on the same data."""

from __future__ import annotations

import time

from flwr.app import RecordDict

from clients import protocol
from clients.protocol import Assignment
from models.compute import ComputeConfig
from models.randomness import derive
from strategies.exchange import Exchanges
from strategies.themis.organiser import Organiser

JOIN_SECONDS = 120.0


def join(organiser: Organiser) -> None:
    """Wait for the nodes, check their code, give each its participant, check their data.

    Raises
    ------
    RuntimeError
        Too few nodes, or a node with other code or other data than the organiser.
    """
    exchanges = organiser.exchanges
    exchanges.nodes = _placed(organiser, _wait_for_nodes(organiser))
    joined = exchanges.ask(protocol.JOIN, _assignments(organiser), protocol.words_of)
    for name, words in joined.items():
        _check_data(organiser, name, words)
    exchanges.nodes = {name: exchanges.nodes[name] for name in joined}
    exchanges.need(organiser.settings.min_participants, len(joined), protocol.JOIN)


def _wait_for_nodes(organiser: Organiser) -> dict[str, int]:
    """Return the nodes once there are as many as participants; ids are random per run."""
    wanted, deadline = len(organiser.experiment.participants), time.monotonic() + JOIN_SECONDS
    while len(found := sorted(organiser.grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if len(found) < max(1, organiser.settings.min_participants):
        raise RuntimeError(
            f"only {len(found)} of {wanted} nodes were there after {JOIN_SECONDS:g} s; start more "
            f"nodes, or give the simulation num-supernodes={wanted}"
        )
    if len(found) < wanted:
        organiser.recorder.event(f"starting with {len(found)} of {wanted} nodes")
    return {str(node): node for node in found}


def _placed(organiser: Organiser, nodes: dict[str, int]) -> dict[str, int]:
    """Return the node of each participant: partition i plays the i-th one."""
    everyone = Exchanges(
        organiser.grid, organiser.recorder, nodes, organiser.experiment.client.timeout
    )
    hello = protocol.request({"run": organiser.run})
    names = organiser.experiment.names()
    placed: dict[str, int] = {}
    greetings = everyone.ask(protocol.HELLO, dict.fromkeys(nodes, hello), _greeting)
    for node, (partition, code) in greetings.items():
        _check_code(code)
        if not 0 <= partition < len(names):
            organiser.recorder.event(f"node {node} has partition {partition}, which nobody plays")
        elif names[partition] in placed:
            organiser.recorder.event(f"node {node} says it has partition {partition} too; ignored")
        else:
            placed[names[partition]] = nodes[node]
    return {name: placed[name] for name in names if name in placed}


def _greeting(content: RecordDict) -> tuple[int, str]:
    words = protocol.words_of(content)
    return int(words["partition"]), str(words["code"])


def _check_code(code: str) -> None:
    own = protocol.code_fingerprint()
    if code != own:
        raise RuntimeError(
            f"a node runs other code (fingerprint {code}) than the organiser ({own}): install the "
            "same version of pudica on both, and start `flwr run` from a directory that holds no "
            "folders called models or clients"
        )


def _assignments(organiser: Organiser) -> dict[str, RecordDict]:
    experiment = organiser.experiment
    compute = experiment.client.model_dump(include=set(ComputeConfig.model_fields))
    requests = {}
    for number, participant in enumerate(experiment.participants):
        assignment = Assignment(
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
    if words.get("fingerprint") != own.fingerprint:
        raise RuntimeError(
            f"{name} holds other data than the organiser: {words.get('classes')} classes of shape "
            f"{words.get('shape')} against {own.num_classes} of shape "
            f"{'x'.join(map(str, own.shape))}; give both the same data set"
        )
