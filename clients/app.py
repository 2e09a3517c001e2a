"""The ClientApp of the laboratory: nodes whose models and data an experiment assigns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import WARN
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from pudica.clients import assignments, protocol
from pudica.clients.assignments import (
    AnyAssignment,
    EdgeAssignment,
    InferenceAssignment,
    OwnerAssignment,
    ParticipantAssignment,
)
from pudica.clients.data import DataError
from pudica.clients.dlmt import handlers as dlmt
from pudica.clients.dlmt.owner import Owner
from pudica.clients.facemix import handlers as facemix
from pudica.clients.facemix.edge import InferenceEdge
from pudica.clients.facemix.training import TrainingEdge, edge_of
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.odometer import IN_THE_CLEAR, Odometer, Release, anchor_of
from pudica.clients.runtime.role import Find, Handler, add_handlers, hello, reply_once
from pudica.clients.runtime.vault import Vault, is_deployed, vault_of, vault_path
from pudica.clients.split import handlers as split
from pudica.clients.split.edge import Edge
from pudica.clients.themis.assigned import AssignedParticipant

app = ClientApp()

Node = AssignedParticipant | Edge | Owner | InferenceEdge

_nodes: dict[Path, Node] = {}


ROLES: dict[type, Callable[[Vault, Any], Node]] = {
    EdgeAssignment: Edge,
    InferenceAssignment: edge_of,
    OwnerAssignment: Owner,
    ParticipantAssignment: AssignedParticipant,
}
HANDLERS: dict[type, Mapping[str, Handler]] = {
    AssignedParticipant: AssignedParticipant.handlers,
    Edge: split.HANDLERS,
    Owner: dlmt.HANDLERS,
    InferenceEdge: facemix.INFERENCE,
    TrainingEdge: facemix.TRAINING,
}


def _made(vault: Vault, assignment: AnyAssignment, context: Context) -> Node:
    """Return who an assignment makes of this node, on the images that it had from the first."""
    try:
        node = ROLES[type(assignment)](vault, assignment)
    except DataError as error:
        if not is_deployed(context):
            raise
        # What is wrong with which of its files is the node's own business.
        log(WARN, "%s", error)
        raise RuntimeError(
            "this node's images can't be read with these settings; its own log says why"
        ) from error
    # Noted here and not told: a hash would let others check what they guess of the data.
    if not vault.pin("data", node.data.content_hash):
        raise RuntimeError(
            "this node holds other images than when it joined this run: give it back those, or "
            "start a new run"
        )
    return node


def _node(config: Mapping[str, protocol.Scalar], context: Context) -> Node:
    """Return who a request is for, from memory or, in a fresh process, from its vault."""
    place = vault_path(context, str(config["run"]))
    if place not in _nodes or not _is_current(_nodes[place], config):
        vault = vault_of(context, str(config["run"]))
        kept = vault.read("assignment.json")
        if kept is None:
            raise RuntimeError("this node has not joined the run, or its vault was emptied")
        _nodes[place] = _made(vault, _agreed(assignments.parsed(kept), context), context)
    return _nodes[place]


def _account(role: Node, context: Context) -> None:
    """Refuse what does not fit beside what this node released before; note what has no guarantee.

    A simulated node begins anew with each run, and notes what it is to keep to alone.
    """
    if isinstance(role, Edge) and role.releases.counts:
        role.releases.check()
    elif NodeConfig.of(context):
        assignment = role.assignment
        case = getattr(assignment, "case", assignment.system)
        release = Release(assignment.run, case, IN_THE_CLEAR, "train", "", None)
        Odometer(role.vault, anchor_of(role.vault.lasting)).note(release)


def _agreed(assignment: AnyAssignment, context: Context) -> AnyAssignment:
    """Return what a node does of what it is asked for: a deployed one has terms of its own."""
    node = NodeConfig.of(context)
    return node.agreed(assignment) if node else assignment


def _is_current(node: Node, config: Mapping[str, protocol.Scalar]) -> bool:
    """Tell whether a node is of a request's case; another process may have joined for it."""
    return isinstance(node, AssignedParticipant) or node.assignment.case == config["case"]


def _find(role: type) -> Find:
    """Return what finds the node of a request, which must have this role."""

    def find(config: Mapping[str, Any], context: Context) -> Any:
        node = _node(config, context)
        if not isinstance(node, role):
            raise RuntimeError(f"this node is no {role.__name__.lower()} in this run")
        return node

    return find


app.query("hello")(hello)


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Keep the assignment in the vault and describe the data as seen from here."""
    words = protocol.words_of(message.content)
    assignment = _agreed(assignments.parsed(str(words["assignment"])), context)

    def content() -> RecordDict:
        vault = vault_of(context, assignment.run)
        role = _made(vault, assignment, context)
        _account(role, context)
        # Only now: who was refused must not have changed what was agreed.
        vault.write("assignment.json", assignment.model_dump_json().encode())
        _nodes[vault.root] = role
        if not isinstance(role, AssignedParticipant):
            role.roll_back(int(words["turn"]))
        return protocol.statement(role.describe_data())

    return reply_once(message, context, assignment.run, content)


for role, handlers in HANDLERS.items():
    add_handlers(app, handlers, _find(role))
