"""The ClientApp of the laboratory: nodes whose models and data an experiment assigns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARN
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from pudica.clients import protocol
from pudica.clients.assignments import Assignment, parse_assignment
from pudica.clients.data import DataError
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.odometer import IN_THE_CLEAR, Odometer, Release, anchor_of
from pudica.clients.runtime.role import Find, Handler, add_handlers, hello, reply_once
from pudica.clients.runtime.systems import OURS, System, systems
from pudica.clients.runtime.vault import Vault, is_deployed, vault_of, vault_path
from pudica.clients.split.edge import Edge
from pudica.models.printable import escape_hidden

app = ClientApp()

# What an assignment makes of nodes: a Role with `assignment` and `data`.
_nodes: dict[Path, Any] = {}


def _make_node(vault: Vault, assignment: Assignment, context: Context) -> Any:
    """Return the role that an assignment gives this node, on the images it had from the first."""
    try:
        node = systems()[assignment.system].part("role")(vault, assignment)
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
    if is_deployed(context):
        for note in node.data.notes:
            log(INFO, "data: %s", escape_hidden(note))
    return node


def _node(config: Mapping[str, protocol.Scalar], context: Context) -> Any:
    """Return the node of a request, from memory or, in a fresh process, from its vault."""
    place = vault_path(context, str(config["run"]))
    node = _nodes.get(place)
    # Of another case, if another process has joined for this one.
    if node is None or getattr(node.assignment, "case", None) != config.get("case"):
        vault = vault_of(context, str(config["run"]))
        kept = vault.read("assignment.json")
        if kept is None:
            raise RuntimeError("this node has not joined the run, or its vault was emptied")
        _nodes[place] = _make_node(vault, _agree_to(parse_assignment(kept), context), context)
    return _nodes[place]


def _account(role: Any, context: Context) -> None:
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


def _agree_to(assignment: Assignment, context: Context) -> Assignment:
    """Return what the node does of what it is asked for: a deployed one has terms of its own."""
    node = NodeConfig.of(context)
    return node.agree_to(assignment) if node else assignment


def _find(roles: Sequence[type]) -> Find:
    """Return a function that finds a request's node, which must have one of these roles."""

    def find(config: Mapping[str, Any], context: Context) -> Any:
        node = _node(config, context)
        if not isinstance(node, tuple(roles)):
            name = roles[0].__name__.removeprefix("Assigned").lower()
            raise RuntimeError(f"this node is no {name} in this run")
        return node

    return find


def _answer_as_role(kind: str) -> Handler:
    return lambda role, config, arrays: role.handlers[kind](role, config, arrays)


def register_roles(app: ClientApp, known: Iterable[System]) -> None:
    """Let an app answer what nodes of some systems answer, each kind as the node's role does.

    A role derived from another's answers the same kinds. A package's system whose roles can't be
    loaded is left out.
    """
    by_kind: dict[str, list[type]] = {}
    for system in known:
        try:
            roles = tuple(system.part("roles"))
        except Exception as error:
            if system in OURS:
                raise
            log(WARN, "system '%s' is left out: %s: %s", system.name, type(error).__name__, error)
            continue
        for role in roles:
            for kind in role.handlers:
                by_kind.setdefault(kind, []).append(role)
    for kind, able in by_kind.items():
        add_handlers(app, {kind: _answer_as_role(kind)}, _find(able))


app.query("hello")(hello)


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Keep the assignment in the vault and describe the data as seen from here."""
    words = protocol.words_of(message.content)
    assignment = _agree_to(parse_assignment(str(words["assignment"])), context)

    def content() -> RecordDict:
        vault = vault_of(context, assignment.run)
        role = _make_node(vault, assignment, context)
        _account(role, context)
        # Only now: who was refused must not have changed what was agreed.
        vault.write("assignment.json", assignment.model_dump_json().encode())
        _nodes[vault.root] = role
        role.roll_back(int(words["turn"]))
        return protocol.statement(role.describe_data())

    return reply_once(message, context, assignment.run, content)


register_roles(app, systems().values())
