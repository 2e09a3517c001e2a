"""Requests that come twice are answered once.

A deployed node may be killed, or lose its connection, between doing what it was asked for and
saying so. The server then asks again, under the same exchange's name; what was done already must
not be done twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Packed

from pudica.clients import protocol
from pudica.clients.runtime.vault import AnyVault

EXCHANGE = "pudica-"
"""How names of exchanges begin: what others put there may mean something else."""
REPLY = "reply"
REMEMBERED = 32


def new_exchange() -> str:
    """Return the name of an exchange, which no other has."""
    return EXCHANGE + uuid.uuid4().hex


def exchange_of(message: Message) -> str:
    """Return by what a message is known again if it comes twice; empty if it is not to be."""
    group = message.metadata.group_id
    return f"{message.metadata.message_type}/{group}" if group.startswith(EXCHANGE) else ""


def answer_once(vault: AnyVault, exchange: str, answer: Callable[[], RecordDict]) -> RecordDict:
    """Return a node's answer to an exchange: the one that its vault keeps, or a new one.

    It is :func:`.protocol.busy` if another process of this node is at work.
    """
    with vault.alone() as alone:
        if not alone:
            return protocol.busy()
        names, _, reply = (vault.read(REPLY) or b"").partition(b"\n")
        before = names.decode().split()
        if exchange in before[:1]:
            return recorddict_from_proto(Packed.FromString(reply))
        if exchange in before:
            # A repetition that was overtaken: its answer has come, and nobody waits for another.
            return protocol.busy()
        content = answer()
        known = " ".join([exchange, *before][:REMEMBERED]).encode()
        vault.write(REPLY, known + b"\n" + recorddict_to_proto(content).SerializeToString())
        return content
