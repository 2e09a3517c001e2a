"""The ClientApp: what a participant answers to each kind of message."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import protocol
from clients.participant import Participant, Schedule, attacked
from clients.protocol import Assignment
from clients.vault import Vault, vault_path

app = ClientApp()

_participants: dict[Path, Participant] = {}


def _participant(message: Message, context: Context) -> Participant:
    """Return the node's participant, from memory or, in a fresh process, from its vault."""
    place = vault_path(context, str(message.content.config_records["config"]["run"]))
    if place not in _participants:
        vault = Vault(place)
        kept = vault.read("assignment.json")
        if kept is None:
            raise RuntimeError("this node has not joined the run, or its vault was emptied")
        _participants[place] = Participant(vault, Assignment.model_validate_json(kept))
    return _participants[place]


Handler = Callable[[Participant, dict, dict[str, torch.Tensor]], RecordDict]


def _answering(handler: Handler) -> Callable[[Message, Context], Message]:
    """Turn ``handler(participant, config, arrays)`` into a Flower message handler."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        participant = _participant(message, context)
        config = protocol.words_of(message.content)
        arrays = protocol.arrays_of(message.content)
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        with participant.compute.threads():
            try:
                content = handler(participant, config, tensors)
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                raise RuntimeError(f"out of GPU memory: {error}") from error
        return Message(content, reply_to=message)

    return answer


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
    """Keep the assignment in the vault and describe the public data as seen from here."""
    words = protocol.words_of(message.content)
    assignment = _own_choice(Assignment.model_validate_json(str(words["assignment"])), context)
    vault = Vault(vault_path(context, assignment.run))
    vault.write("assignment.json", assignment.model_dump_json().encode())
    participant = _participants[vault.root] = Participant(vault, assignment)
    data = participant.data
    seen: dict[str, protocol.Scalar] = {
        "classes": data.num_classes,
        "shape": "x".join(map(str, data.shape)),
        "fingerprint": data.fingerprint,
        "train": len(participant.own_train),
    }
    return Message(protocol.statement(seen), reply_to=message)


def _own_choice(assignment: Assignment, context: Context) -> Assignment:
    """Let a deployed node's own ``model`` and data ``root`` win over the organiser's."""
    model, root = context.node_config.get("model"), context.node_config.get("data-root")
    participant = assignment.participant.model_copy(update={"model": model} if model else {})
    data = assignment.data.model_copy(update={"root": root} if root else {})
    return Assignment.model_validate(
        {**assignment.model_dump(), "participant": participant, "data": data}
    )


@app.train("local")
@_answering
def local(participant: Participant, config: dict, _: dict[str, torch.Tensor]) -> RecordDict:
    """Train the private model on."""
    return protocol.reply(participant.train_local(config["epoch"], config["variant"]))


@app.train("gradient")
@_answering
def gradient(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Return the gradient on the noise generator."""
    generator = arrays["generator"]
    values, metrics = participant.gradient(
        generator, config["bound"], config["variant"], Schedule(config)
    )
    return _possibly_attacked(config, values, np.zeros_like(values), metrics)


@app.train("visit")
@_answering
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
@_answering
def noisy(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Measure the model on the noisy public validation set."""
    return protocol.reply(
        participant.noisy_accuracy(
            arrays["generator"], config["bound"], config["seed"], config["variant"]
        )
    )


@app.evaluate("density")
@_answering
def density(participant: Participant, config: dict, _: dict[str, torch.Tensor]) -> RecordDict:
    """Measure what Eq. (1) needs to know of the model."""
    return protocol.reply(participant.density(config["seed"], config["variant"]))


@app.evaluate("predict")
@_answering
def predict(participant: Participant, config: dict, arrays: dict[str, torch.Tensor]) -> RecordDict:
    """Predict the classes of released images."""
    predictions = participant.predict(arrays["images"], config["variant"])
    return protocol.reply({"num-examples": len(predictions)}, predictions=predictions)
