"""Nodes' answers as Flower cuts them up for the wire."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree


def message_of(content: RecordDict, node: int, to: str) -> Message:
    """Return a node's answer to a message."""
    about = Metadata(
        run_id=7,
        message_id="",
        src_node_id=node,
        dst_node_id=9,
        reply_to_message_id=to,
        group_id="",
        created_at=1.0,
        ttl=60.0,
        message_type="train",
    )
    return Message(content, metadata=about)  # type: ignore[call-overload,no-any-return]


def head_of(message: Message, node: int) -> PushMessagesRequest:
    """Return with what a node begins to send it."""
    sent = PushMessagesRequest()
    sent.node.node_id = node
    message.metadata.__dict__["_message_id"] = message.object_id
    sent.messages_list.append(message_to_proto(remove_content_from_message(message)))
    sent.message_object_trees.append(get_object_tree(message))
    return sent


def parts_of(message: Message, session: str) -> list[PushObjectRequest]:
    """Return the parts that follow."""
    return [
        PushObjectRequest(
            object_id=name, object_content=thing.deflate(), session_id=session, run_id=7
        )
        for name, thing in get_all_nested_objects(message).items()
    ]


def session_of(receipt: bytes) -> str:
    """Return what a head was answered with."""
    return str(PushMessagesResponse.FromString(receipt).session_id)
