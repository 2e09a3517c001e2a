"""Nodes' answers at the gate: forwarded only if complete, readable and in the node's own name.

A SuperLink shows an answer to the run as soon as its head has arrived. A run that fetches it then
blocks until the rest has arrived, for up to three minutes. The SuperLink also trusts what the head
says about the rest, and an answer that can't be decoded ends the run. So the gate collects all
parts of an answer, decodes it, and forwards what it has decoded.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable

from flwr.app import Array, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

PUSH, PUSH_OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"
STORED = bytes(PushObjectResponse(stored=True).SerializeToString())

Post = Callable[[str, bytes], Awaitable[bytes]]


class MalformedAnswer(ValueError):
    """What a node sent is not an answer, or not its own."""


class UnreadableAnswer(MalformedAnswer):
    """What a node sent can't be decoded into an answer."""


class ForgottenAnswer(Exception):
    """The SuperLink has forgotten an answer that was begun, so it must be sent from the start."""


class Answer:
    """A node's answer, collected from its parts.

    Parameters
    ----------
    head : PushMessagesRequest
        The head: which message it replies to, and which parts it has.
    max_bytes : int
        Maximum size.

    Raises
    ------
    MalformedAnswer
        If the head is not that of a single answer.

    Attributes
    ----------
    replies_to : str
        Id of the message that it answers.
    lock : asyncio.Lock
        Held while the answer is decoded and forwarded.
    """

    def __init__(self, head: PushMessagesRequest, max_bytes: int) -> None:
        if len(head.messages_list) != 1 or len(head.message_object_trees) != 1:
            raise MalformedAnswer("sent more or less than one answer")
        metadata, (tree,) = head.messages_list[0].metadata, head.message_object_trees
        if not metadata.reply_to_message_id:
            raise MalformedAnswer("sent a message that is not an answer")
        if metadata.src_node_id != head.node.node_id:
            raise MalformedAnswer("sent an answer in another node's name")
        self.head = head
        self.replies_to = metadata.reply_to_message_id
        self.lock = asyncio.Lock()
        self._max_bytes = max_bytes
        self._root = tree.object_id
        self._expected = {part.object_id for part in iterate_object_tree(tree)}
        self._session = uuid.uuid4().hex
        self._parts: dict[str, bytes] = {}
        self._size = 0
        self._message: Message | None = None
        self._remaining: dict[str, InflatableObject] = {}
        self._receipt: PushMessagesResponse | None = None
        self._is_forwarded = False

    def build_receipt(self) -> bytes:
        """Return a SuperLink's response to the head, which requests all parts."""
        receipt = PushMessagesResponse(
            objects_to_push=sorted(self._expected), session_id=self._session
        )
        return bytes(receipt.SerializeToString())

    def add_part(self, part: PushObjectRequest) -> bool:
        """Add a part; return whether all parts have arrived.

        Raises
        ------
        MalformedAnswer
            If it is not a part of this answer.
        UnreadableAnswer
            If the answer becomes too large.
        """
        name, content = part.object_id, part.object_content
        if part.session_id != self._session or name not in self._expected:
            raise MalformedAnswer("sent something that is not part of its answer")
        if get_object_id(content) != name:
            raise MalformedAnswer("sent a part that does not match its hash")
        if self._is_complete():
            return True
        if name not in self._parts:
            self._parts[name] = content
            self._size += len(content)
            self._check_size(self._size)
        return self._expected == self._parts.keys()

    def _is_complete(self) -> bool:
        return self._message is not None or self._is_forwarded

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise UnreadableAnswer(
                f"answered a message with more than {self._max_bytes} bytes; if that is right, set "
                "limits: {message_bytes: …} in organiser.yaml"
            )

    def decode(self) -> None:
        """Decode the answer from its parts; calling it again does nothing.

        Raises
        ------
        UnreadableAnswer
            If it can't be decoded, or does not match its head.
        """
        if self._is_complete():
            return
        try:
            self._check_size(self._count_array_bytes())
            message = inflate_object_from_contents(self._root, self._parts)
        except UnreadableAnswer:
            raise
        # Whatever decoding raises here, it would also raise in the run.
        except Exception as error:
            raise UnreadableAnswer(
                f"sent an answer that can't be decoded: {type(error).__name__}"
            ) from error
        if not isinstance(message, Message):
            raise UnreadableAnswer("sent something that is not a message")
        metadata = message.metadata
        if (metadata.src_node_id, metadata.reply_to_message_id) != (
            self.head.node.node_id,
            self.replies_to,
        ):
            raise UnreadableAnswer("sent an answer that does not match its head")
        self._set_message(message)

    def give_up(self, why: str) -> None:
        """Replace the answer by an error that says why, so that the run does not wait for it."""
        metadata = metadata_from_proto(self.head.messages_list[0].metadata)
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why)
        self._set_message(Message(error, metadata=metadata))  # type: ignore[call-overload]

    def _set_message(self, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = message.object_id
        self._message = message
        self._parts.clear()

    def _count_array_bytes(self) -> int:
        """Return the size of all arrays, since one chunk may occur in them many times."""
        total = 0
        for content in self._parts.values():
            kind, chunks, _ = get_object_head_values_from_object_content(content)
            if kind == Array.__qualname__:
                order = json.loads(get_object_body(content, Array))["arraychunk_ids"]
                total += sum(len(self._parts[chunks[place]]) for place in order)
        return total

    async def forward(self, post: Post) -> None:
        """Send the decoded answer to the SuperLink, except for parts that it already has.

        Nothing that the node said about its parts is passed on: a SuperLink that trusts it might
        refuse what other nodes send.

        Parameters
        ----------
        post : async callable
            Sends content to a path of the SuperLink; raises if it is not accepted.

        Raises
        ------
        ForgottenAnswer
            If it must be tried again.
        """
        if self._is_forwarded:
            return
        assert self._message is not None
        if self._receipt is None:
            objects = get_all_nested_objects(self._message)
            self._receipt = PushMessagesResponse.FromString(await post(PUSH, self._build_head()))
            self._remaining = {name: objects[name] for name in self._receipt.objects_to_push}
        for name, nested in list(self._remaining.items()):
            part = PushObjectRequest(
                node=self.head.node,
                run_id=self._message.metadata.run_id,
                object_id=name,
                object_content=nested.deflate(),
                session_id=self._receipt.session_id,
            )
            answer = await post(PUSH_OBJECT, part.SerializeToString())
            if not PushObjectResponse.FromString(answer).stored:
                self._receipt = None
                raise ForgottenAnswer
            del self._remaining[name]
        self._message, self._is_forwarded = None, True

    def _build_head(self) -> bytes:
        assert self._message is not None
        head = PushMessagesRequest(
            node=self.head.node,
            messages_list=[message_to_proto(remove_content_from_message(self._message))],
            message_object_trees=[get_object_tree(self._message)],
            clientapp_runtime_list=self.head.clientapp_runtime_list[:1],
        )
        return bytes(head.SerializeToString())
