"""Nodes' answers on their way through the gate: whole, readable and in their own name, or none.

A SuperLink shows an answer to the run as soon as its head has come, and a run that fetches one
waits until the rest of it is there, for up to three minutes and for nobody else. It believes what
the head says of the rest, and an answer that can't be read ends the run. So the gate takes in all
of an answer, reads it, and hands on what it has read.
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


class Malformed(ValueError):
    """What a node sends is no answer, or not its own."""


class Spoilt(Malformed):
    """What a node has begun will never be an answer."""


class Forgotten(Exception):
    """The SuperLink has forgotten that an answer was begun; it is to be begun anew."""


class Answer:
    """A node's answer, of which parts are still to come.

    Parameters
    ----------
    head : PushMessagesRequest
        With which it begins: what it answers, and which parts it has.
    most : int
        Bytes that it may have.

    Raises
    ------
    Malformed
        It is no head of one answer.

    Attributes
    ----------
    to : str
        The message that it answers.
    alone : asyncio.Lock
        Held by who reads it and hands it on.
    """

    def __init__(self, head: PushMessagesRequest, most: int) -> None:
        if len(head.messages_list) != 1 or len(head.message_object_trees) != 1:
            raise Malformed("sends no single answer")
        metadata, (tree,) = head.messages_list[0].metadata, head.message_object_trees
        if not metadata.reply_to_message_id:
            raise Malformed("sends what is no answer")
        if metadata.src_node_id != head.node.node_id:
            raise Malformed("speaks for another")
        self.head = head
        self.to = metadata.reply_to_message_id
        self.alone = asyncio.Lock()
        self._most = most
        self._root = tree.object_id
        self._wanted = {part.object_id for part in iterate_object_tree(tree)}
        self._session = uuid.uuid4().hex
        self._parts: dict[str, bytes] = {}
        self._size = 0
        self._message: Message | None = None
        self._left: dict[str, InflatableObject] = {}
        self._told: PushMessagesResponse | None = None
        self._is_handed_on = False

    def receipt(self) -> bytes:
        """Return what a SuperLink would say to the head: that all parts are to come."""
        told = PushMessagesResponse(objects_to_push=sorted(self._wanted), session_id=self._session)
        return bytes(told.SerializeToString())

    def take(self, part: PushObjectRequest) -> bool:
        """Take a part in; tell whether all are there.

        Raises
        ------
        Malformed
            It is no part of this answer.
        Spoilt
            It is one too many.
        """
        name, content = part.object_id, part.object_content
        if part.session_id != self._session or name not in self._wanted:
            raise Malformed("sends what is no part of its answer")
        if get_object_id(content) != name:
            raise Malformed("sends a part that is not what it says it is")
        if self._is_read():
            return True
        if name not in self._parts:
            self._parts[name] = content
            self._size += len(content)
            self._check_size(self._size)
        return self._wanted == self._parts.keys()

    def _is_read(self) -> bool:
        return self._message is not None or self._is_handed_on

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise Spoilt(
                f"answers one message with more than {self._most} bytes; where that is right, set "
                "limits: {message_bytes: …} in organiser.yaml"
            )

    def read(self) -> None:
        """Read it, once all parts are there; a second time does nothing.

        Raises
        ------
        Spoilt
            It can't be read, or says otherwise than its head.
        """
        if self._is_read():
            return
        try:
            self._check_size(self._unfolded())
            message = inflate_object_from_contents(self._root, self._parts)
        except Spoilt:
            raise
        # Whatever it is that reading raises, it would be raised in the run as well.
        except Exception as error:
            raise Spoilt(f"sends what can't be read: {type(error).__name__}") from error
        if not isinstance(message, Message):
            raise Spoilt("sends what is no message")
        said = message.metadata
        if (said.src_node_id, said.reply_to_message_id) != (self.head.node.node_id, self.to):
            raise Spoilt("answers otherwise than it says")
        self._is(message)

    def give_up(self, why: str) -> None:
        """Let the answer be that there is none, and why: the run need not wait for it."""
        asked = metadata_from_proto(self.head.messages_list[0].metadata)
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why)
        self._is(Message(error, metadata=asked))  # type: ignore[call-overload]

    def _is(self, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = message.object_id
        self._message = message
        self._parts.clear()

    def _unfolded(self) -> int:
        """Return the bytes of all arrays: one chunk may stand in them many times."""
        total = 0
        for content in self._parts.values():
            kind, chunks, _ = get_object_head_values_from_object_content(content)
            if kind == Array.__qualname__:
                order = json.loads(get_object_body(content, Array))["arraychunk_ids"]
                total += sum(len(self._parts[chunks[place]]) for place in order)
        return total

    async def hand_on(self, post: Post) -> None:
        """Give what was read to the SuperLink, as far as it has not got it yet.

        Of what the node said of the parts, nothing is: a SuperLink that believes it may refuse
        what others send.

        Parameters
        ----------
        post : async callable
            Sends something to a path of the SuperLink; raises what keeps it from being taken.

        Raises
        ------
        Forgotten
            It is to be tried again.
        """
        if self._is_handed_on:
            return
        assert self._message is not None
        if self._told is None:
            things = get_all_nested_objects(self._message)
            self._told = PushMessagesResponse.FromString(await post(PUSH, self._read_head()))
            self._left = {name: things[name] for name in self._told.objects_to_push}
        for name, thing in list(self._left.items()):
            part = PushObjectRequest(
                node=self.head.node,
                run_id=self._message.metadata.run_id,
                object_id=name,
                object_content=thing.deflate(),
                session_id=self._told.session_id,
            )
            answer = await post(PUSH_OBJECT, part.SerializeToString())
            if not PushObjectResponse.FromString(answer).stored:
                self._told = None
                raise Forgotten
            del self._left[name]
        self._message, self._is_handed_on = None, True

    def _read_head(self) -> bytes:
        assert self._message is not None
        head = PushMessagesRequest(
            node=self.head.node,
            messages_list=[message_to_proto(remove_content_from_message(self._message))],
            message_object_trees=[get_object_tree(self._message)],
            clientapp_runtime_list=self.head.clientapp_runtime_list[:1],
        )
        return bytes(head.SerializeToString())
