"""What a device of split learning answers to each kind of message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.runtime.role import Arrays, Config, Handler

if TYPE_CHECKING:
    from pudica.clients.split.edge import Edge


def answer_smash(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
    """Learn from the last batches' gradient, and compute the next ones as far as the cut."""
    seconds: dict[str, int | float] = {}
    if "gradient" in arrays:
        seconds = edge.learn(arrays["gradient"], config["scale"], config["of"])
    turn = config["turn"]
    smashed, labels, forward = edge.smash(config["epoch"], config["step"], config["count"], turn)
    if config["keep"]:
        edge.keep(turn, config["needed"])
    return protocol.reply(seconds | forward, smashed=smashed, labels=labels)


def answer_front_gradient(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
    """Return the front's gradient on the last batches, and its buffers."""
    values, seconds = edge.front_gradient(arrays["gradient"], config["scale"], config["of"])
    return protocol.reply(seconds, values=values)


def answer_front(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
    """Learn from the last batches' gradient, and return the front."""
    edge.require_fronts("handoff")
    if "gradient" in arrays:
        edge.learn(arrays["gradient"], config["scale"], config["of"])
    edge.keep(max(edge.turn, config["turn"]), config["needed"])
    return protocol.reply({"num-examples": len(edge.train)}, **edge.return_front())


def answer_whole(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
    """Measure the whole model on this device's own images."""
    return protocol.reply(edge.evaluate(arrays["back"], config["part"], config["epoch"]))


def answer_features(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
    """Send features to be classified; once all are, count what was right."""
    if "predictions" in arrays:
        return protocol.reply({"right": edge.count_correct(arrays["predictions"])})
    sent = edge.features(config["start"], config["count"], bool(config["noisy"]))
    return protocol.reply({"num-examples": config["count"]}, features=sent)


def _prepare(handler: Handler) -> Handler:
    """Return a handler of a device that is up to date, with the front that was sent."""

    def prepared(edge: Edge, config: Config, arrays: Arrays) -> RecordDict:
        edge.begin(config.get("turn", -1), config.get("of"))
        if "front" in arrays:
            edge.adopt(arrays)
        return handler(edge, config, arrays)

    return prepared


HANDLERS: Mapping[str, Handler] = {
    protocol.SMASH: _prepare(answer_smash),
    protocol.FRONT_GRADIENT: _prepare(answer_front_gradient),
    protocol.FRONT: _prepare(answer_front),
    protocol.WHOLE: _prepare(answer_whole),
    protocol.FEATURES: _prepare(answer_features),
}
