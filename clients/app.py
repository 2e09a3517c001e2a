"""The ClientApp: what a node answers to each kind of message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from logging import WARN
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
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
from pudica.clients.edge import Edge
from pudica.clients.inference import InferenceEdge
from pudica.clients.inference_training import TrainingEdge, edge_of
from pudica.clients.node import NodeConfig
from pudica.clients.odometer import IN_THE_CLEAR, Odometer, Release, anchor_of
from pudica.clients.once import answered_once
from pudica.clients.owner import Owner
from pudica.clients.participant import Participant, Schedule, attacked
from pudica.clients.vault import Vault, is_deployed, vault_of, vault_path

app = ClientApp()

Node = Participant | Edge | Owner | InferenceEdge
Role = TypeVar("Role", Participant, Edge, Owner, InferenceEdge, TrainingEdge)
Arrays = dict[str, torch.Tensor]

_nodes: dict[Path, Node] = {}


ROLES: dict[type, Callable[[Vault, Any], Node]] = {
    EdgeAssignment: Edge,
    InferenceAssignment: edge_of,
    OwnerAssignment: Owner,
    ParticipantAssignment: Participant,
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
    if not vault.pin("data", node.data.content):
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
    return isinstance(node, Participant) or node.assignment.case == config["case"]


def _answering(
    role: type[Role],
) -> Callable[[Callable[[Role, dict, Arrays], RecordDict]], Callable[[Message, Context], Message]]:
    """Turn ``handler(node, config, arrays)`` into a Flower message handler of one role."""

    def decorate(
        handler: Callable[[Role, dict, Arrays], RecordDict],
    ) -> Callable[[Message, Context], Message]:
        @wraps(handler)
        def answer(message: Message, context: Context) -> Message:
            exchange = message.metadata.group_id
            config = {**protocol.words_of(message.content), "exchange": exchange}

            def content() -> RecordDict:
                node = _node(config, context)
                if not isinstance(node, role):
                    raise RuntimeError(f"this node is no {role.__name__.lower()} in this run")
                arrays = protocol.arrays_of(message.content)
                tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
                return _computed(node, handler, config, tensors)

            return _reply(message, context, str(config["run"]), content)

        return answer

    return decorate


def _reply(
    message: Message, context: Context, run: str, content: Callable[[], RecordDict]
) -> Message:
    """Return the reply to a message; in a simulation, nobody asks twice."""
    vault = vault_of(context, run)
    if exchange := message.metadata.group_id:
        return Message(answered_once(vault, exchange, content), reply_to=message)
    if not is_deployed(context):
        return Message(content(), reply_to=message)
    with vault.alone() as alone:  # of a deployed node, two processes may be at work at once
        return Message(content() if alone else protocol.busy(), reply_to=message)


def _computed(node: Any, handler: Callable, config: dict, tensors: Arrays) -> RecordDict:
    with node.compute.use_threads():
        try:
            content: RecordDict = handler(node, config, tensors)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise RuntimeError(f"out of GPU memory: {error}") from error
    return content


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which partition this node is, and which code it runs."""
    words: dict[str, protocol.Scalar] = {
        "partition": int(context.node_config.get("partition-id", -1)),
        "code": protocol.code_fingerprint(),
    }
    return Message(protocol.statement(words), reply_to=message)


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
        if not isinstance(role, Participant):
            role.roll_back(int(words["turn"]))
        return protocol.statement(role.introduced())

    return _reply(message, context, assignment.run, content)


# ------------------------------------------------------------------------------ THEMIS


@app.train("local")
@_answering(Participant)
def local(participant: Participant, config: dict, _: dict[str, torch.Tensor]) -> RecordDict:
    """Train the private model on."""
    numbers, arrays = participant.train_local(config["since"], config["epoch"], config["variant"])
    return protocol.reply(numbers, **arrays)


@app.train("gradient")
@_answering(Participant)
def gradient(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Return the gradient on the noise generator."""
    generator = arrays["generator"]
    values, metrics = participant.gradient(
        generator, config["bound"], config["variant"], Schedule(config)
    )
    return _possibly_attacked(config, values, np.zeros_like(values), metrics)


@app.train("visit")
@_answering(Participant)
def visit(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Take local steps with the noise generator."""
    state = arrays["state"]
    values, metrics = participant.visit(
        state,
        config["steps"],
        config["bound"],
        config["learning-rate"],
        config["weight"],
        config["variant"],
        Schedule(config),
    )
    return _possibly_attacked(config, values, state.numpy(), metrics)


def _possibly_attacked(
    config: dict, values: np.ndarray, reference: np.ndarray, metrics: dict[str, int | float]
) -> RecordDict:
    """Reply honestly, unless the experiment makes this participant hostile."""
    attack = config.get("attack")
    arrays = attacked(attack, values, reference) if attack else {"values": values}
    return protocol.reply(metrics, **arrays)


@app.evaluate("noisy")
@_answering(Participant)
def noisy(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Measure the model on the noisy public validation set."""
    return protocol.reply(
        participant.noisy_accuracy(
            arrays["generator"], config["bound"], config["seed"], config["variant"]
        )
    )


@app.evaluate("density")
@_answering(Participant)
def density(participant: Participant, config: dict, _: dict[str, torch.Tensor]) -> RecordDict:
    """Measure what Eq. (1) needs to know of the model."""
    return protocol.reply(participant.density(config["seed"], config["variant"]))


@app.evaluate("predict")
@_answering(Participant)
def predict(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Predict the classes of released images."""
    predictions = participant.predict(arrays["images"], config["variant"])
    reply = protocol.reply({"num-examples": len(predictions)}, predictions=predictions)
    if signature := participant.submitted(arrays["images"], predictions):
        reply["config"] = ConfigRecord(dict(signature))
    return reply


# --------------------------------------------------------------------- split learning


def _of_edge(handler: Callable[[Edge, dict, Arrays], RecordDict]) -> Callable:
    """Turn a handler into one of a device that is up to date, with the front that was sent."""

    @wraps(handler)
    def prepared(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
        edge.begin(config["exchange"])
        if "front" in arrays:
            edge.adopt(arrays)
        return handler(edge, config, arrays)

    return _answering(Edge)(prepared)


@app.train("smash")
@_of_edge
def smash(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
    """Learn from the last batches' gradient, and compute the next ones as far as the cut."""
    seconds: dict[str, int | float] = {}
    if "gradient" in arrays:
        seconds = edge.learn(arrays["gradient"], config["scale"], config["of"])
    turn = config["turn"]
    smashed, labels, forward = edge.smash(config["epoch"], config["step"], config["count"], turn)
    if config["keep"]:
        edge.keep(turn, config["needed"])
    return protocol.reply(seconds | forward, smashed=smashed, labels=labels)


@app.train("front")
@_of_edge
def front_gradient(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
    """Return the front's gradient on the last batches, and its buffers."""
    values, seconds = edge.front_gradient(arrays["gradient"], config["scale"], config["of"])
    return protocol.reply(seconds, values=values)


@app.query("front")
@_of_edge
def hand_on(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
    """Learn from the last batches' gradient, and return the front."""
    edge.need_fronts("handoff")
    if "gradient" in arrays:
        edge.learn(arrays["gradient"], config["scale"], config["of"])
    edge.keep(max(edge.turn, config["turn"]), config["needed"])
    return protocol.reply({"num-examples": len(edge.train)}, **edge.handed_on())


@app.evaluate("whole")
@_of_edge
def whole(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
    """Measure the whole model on this device's own images."""
    return protocol.reply(edge.evaluate(arrays["back"], config["part"], config["epoch"]))


@app.evaluate("features")
@_of_edge
def features(edge: Edge, config: dict, arrays: Arrays) -> RecordDict:
    """Send features to be classified; once all are, count what was right."""
    if "predictions" in arrays:
        return protocol.reply({"right": edge.right(arrays["predictions"])})
    sent = edge.features(config["start"], config["count"], bool(config["noisy"]))
    return protocol.reply({"num-examples": config["count"]}, features=sent)


# -------------------------------------------------------------------------------- DLMT


@app.query("statistics")
@_answering(Owner)
def statistics(owner: Owner, _: dict, __: Arrays) -> RecordDict:
    """Say how the disguised images' channels are distributed."""
    numbers, arrays = owner.statistics()
    return protocol.reply(numbers, **arrays)


@app.query("images")
@_answering(Owner)
def images(owner: Owner, config: dict, _: Arrays) -> RecordDict:
    """Give disguised images away, where the cloud is to train."""
    return protocol.reply({}, **owner.images(config["start"], config["count"]))


@app.train("round")
@_answering(Owner)
def round_(owner: Owner, config: dict, arrays: Arrays) -> RecordDict:
    """Train the model for some epochs."""
    numbers, trained = owner.train(config["round"], config["needed"], arrays)
    return protocol.reply(numbers, **trained)


@app.evaluate("right")
@_answering(Owner)
def right(owner: Owner, config: dict, arrays: Arrays) -> RecordDict:
    """Count what a model gets right."""
    return protocol.reply(owner.right(config["part"], config["view"], config["model"], arrays))


@app.query("audit")
@_answering(Owner)
def audit(owner: Owner, _: dict, __: Arrays) -> RecordDict:
    """Attack one's own disguise."""
    return protocol.reply(owner.audit())


# ----------------------------------------------------------------------------- FaceMix


@app.query("adopt")
@_answering(InferenceEdge)
def adopt(edge: InferenceEdge, _: dict, arrays: Arrays) -> RecordDict:
    """Take the first and the last stage."""
    edge.adopt(arrays)
    return protocol.reply({"requests": edge.requests})


@app.query("infer")
@_answering(InferenceEdge)
def infer(edge: InferenceEdge, config: dict, arrays: Arrays) -> RecordDict:
    """Finish the last request with what the cloud made of it, and ask the next."""
    if edge.alone:
        edge.answer_alone()
        return protocol.reply({"done": 1})
    if "outputs" in arrays:
        edge.answer(config["number"], arrays["outputs"])
    number = edge.next_request()
    if number is None:
        return protocol.reply({"done": 1})
    return protocol.reply({"done": 0, "number": number}, mixtures=edge.ask(number))


@app.evaluate("counts")
@_answering(InferenceEdge)
def counts(edge: InferenceEdge, _: dict, __: Arrays) -> RecordDict:
    """Say how often which answer was right."""
    return protocol.reply({}, counts=edge.counts())


@app.train("mixtures")
@_answering(TrainingEdge)
def mixtures(edge: TrainingEdge, config: dict, arrays: Arrays) -> RecordDict:
    """Compute a training batch as far as it leaves."""
    return protocol.reply({}, mixtures=edge.mixtures(config["epoch"], config["number"], arrays))


@app.train("outputs")
@_answering(TrainingEdge)
def outputs(edge: TrainingEdge, config: dict, arrays: Arrays) -> RecordDict:
    """Return loss and gradient on what the cloud made of a batch."""
    place = config["epoch"], config["number"], config["share"]
    numbers, gradient = edge.loss(*place, arrays)
    return protocol.reply(numbers, gradient=gradient)


@app.train("ends")
@_answering(TrainingEdge)
def ends(edge: TrainingEdge, config: dict, arrays: Arrays) -> RecordDict:
    """Return the gradients of the first and the last stage on a batch."""
    place = config["epoch"], config["number"], config["share"]
    return protocol.reply({}, **edge.gradients(*place, arrays))
