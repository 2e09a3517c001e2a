"""Requests that come twice are answered once.

A deployed node may be killed, or lose its connection, between doing what it was asked for and
saying so. The server then asks again, under the same exchange's name; what was done already must
not be done twice.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Packed

from pudica.clients import protocol
from pudica.clients.runtime.vault import AnyVault

EXCHANGE = "pudica-"
"""How names of exchanges begin: what others put there may mean something else."""
PLACES = "replies"
REMEMBERED, KEPT = 32, 3


def new_exchange() -> str:
    """Return the name of an exchange, which no other has."""
    return EXCHANGE + uuid.uuid4().hex


def exchange_of(message: Message) -> str:
    """Return by what a message is known again if it comes twice; empty if it is not to be."""
    group = message.metadata.group_id
    return f"{message.metadata.message_type}/{group}" if group.startswith(EXCHANGE) else ""


def answer_once(vault: AnyVault, exchange: str, answer: Callable[[], RecordDict]) -> RecordDict:
    """Return a node's answer to an exchange: the one that its vault keeps, or a new one.

    The last few are kept, since messages of a server that was killed may come between an exchange
    and its repetition. It is :func:`.protocol.busy` if another process of this node is at work.
    """
    with vault.alone() as alone:
        if not alone:
            return protocol.busy()
        place = _place_of(exchange)
        if (kept := vault.read(place)) is not None:
            return recorddict_from_proto(Packed.FromString(kept))
        places = (vault.read(PLACES) or b"").decode().split()
        if place in places:
            # Long overtaken: its answer has come, and nobody waits for another.
            return protocol.busy()
        content = answer()
        # First the answer: if this process is killed in between, it is found all the same.
        vault.write(place, recorddict_to_proto(content).SerializeToString())
        vault.write(PLACES, " ".join([place, *places][:REMEMBERED]).encode())
        for old in places[KEPT - 1 : KEPT]:
            vault.delete(old)
        return content


def _place_of(exchange: str) -> str:
    """Return under which name an answer is kept; an exchange's own is up to the server."""
    return "reply-" + hashlib.blake2b(exchange.encode(), digest_size=8).hexdigest()
