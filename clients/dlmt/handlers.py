"""What an owner of disguised images answers to each kind of message."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.dlmt.owner import Owner
from pudica.clients.runtime.role import Arrays, Config, Handler


def answer_statistics(owner: Owner, _: Config, __: Arrays) -> RecordDict:
    """Say how the disguised images' channels are distributed."""
    numbers, arrays = owner.statistics()
    return protocol.reply(numbers, **arrays)


def answer_images(owner: Owner, config: Config, _: Arrays) -> RecordDict:
    """Give disguised images away, where the cloud is to train."""
    return protocol.reply({}, **owner.images(config["start"], config["count"]))


def answer_round(owner: Owner, config: Config, arrays: Arrays) -> RecordDict:
    """Train the model for some epochs."""
    numbers, trained = owner.train(config["round"], config["needed"], arrays)
    return protocol.reply(numbers, **trained)


def answer_right(owner: Owner, config: Config, arrays: Arrays) -> RecordDict:
    """Count what a model gets right."""
    return protocol.reply(owner.right(config["part"], config["view"], config["model"], arrays))


def answer_audit(owner: Owner, _: Config, __: Arrays) -> RecordDict:
    """Attack one's own disguise."""
    return protocol.reply(owner.audit())


HANDLERS: Mapping[str, Handler] = {
    protocol.STATISTICS: answer_statistics,
    protocol.IMAGES: answer_images,
    protocol.ROUND: answer_round,
    protocol.RIGHT: answer_right,
    protocol.AUDIT: answer_audit,
}
Owner.handlers = HANDLERS
ROLES = (Owner,)
