"""What an edge of FaceMix answers to each kind of message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.runtime.role import Arrays, Config, Handler
from pudica.models.attributes import LOGITS

if TYPE_CHECKING:
    from pudica.clients.facemix.edge import InferenceEdge


def answer_adopt(edge: InferenceEdge, config: Config, arrays: Arrays) -> RecordDict:
    """Take the first and the last stage."""
    edge.adopt(arrays, config.get("attributes", 0), config.get("answers", LOGITS))
    return protocol.reply({"requests": edge.requests})


def answer_infer(edge: InferenceEdge, config: Config, arrays: Arrays) -> RecordDict:
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


def answer_counts(edge: InferenceEdge, _: Config, __: Arrays) -> RecordDict:
    """Say how often which answer was right."""
    return protocol.reply({}, counts=edge.counts())


def answer_mixtures(edge: InferenceEdge, config: Config, arrays: Arrays) -> RecordDict:
    """Compute a training batch as far as it leaves."""
    mixtures = edge.training.mixtures(config["epoch"], config["number"], arrays)
    return protocol.reply({}, mixtures=mixtures)


def answer_outputs(edge: InferenceEdge, config: Config, arrays: Arrays) -> RecordDict:
    """Return loss and gradient on what the cloud made of a batch."""
    place = config["epoch"], config["number"], config["share"]
    numbers, gradient = edge.training.loss(*place, arrays)
    return protocol.reply(numbers, gradient=gradient)


def answer_ends(edge: InferenceEdge, config: Config, arrays: Arrays) -> RecordDict:
    """Return the gradients of the first and the last stage on a batch."""
    place = config["epoch"], config["number"], config["share"]
    return protocol.reply({}, **edge.training.gradients(*place, arrays))


HANDLERS: Mapping[str, Handler] = {
    protocol.ADOPT: answer_adopt,
    protocol.INFER: answer_infer,
    protocol.COUNTS: answer_counts,
    protocol.MIXTURES: answer_mixtures,
    protocol.OUTPUTS: answer_outputs,
    protocol.ENDS: answer_ends,
}
