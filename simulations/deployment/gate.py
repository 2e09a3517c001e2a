"""The gate: what of an organiser's SuperLink is open to the world.

Whoever reaches Flower's SuperLink may register nodes and start runs, whatever keys nodes have:
its port serves nodes, the organiser's commands and its own processes alike, and only nodes are
asked who they are. So the SuperLink listens on this machine alone, and in front of it stands
this gate, which lets nothing through but what registered nodes need.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from flwr.common.constant import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto.fleet_pb2 import (
    DeactivateNodeRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError

from pudica.simulations.deployment.allowance import TRY_LATER, Allowance, Limits, PerMinute, Refused
from pudica.simulations.deployment.answers import (
    PUSH,
    PUSH_OBJECT,
    STORED,
    Answer,
    Forgotten,
    Malformed,
    Spoilt,
)
from pudica.simulations.programs.calling import LOOPBACK
from pudica.strategies.core.registry import ROSTER, Registered, fingerprint_of, registered

PULL = "/v1/fleet/pull-messages"
PULL_OBJECT, CONFIRM = "/v1/fleet/pull-object", "/v1/fleet/confirm-message-received"
ACTIVATE, DEACTIVATE = "/v1/fleet/activate-node", "/v1/fleet/deactivate-node"
OPEN = frozenset(
    {
        *(PULL, PUSH, PULL_OBJECT, PUSH_OBJECT, CONFIRM, ACTIVATE, DEACTIVATE),
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
    }
)
# What a SuperLink says to a node that wants to begin, and is there as far as it knows.
THERE_ALREADY = 412
PASSED = frozenset({"content-type", "accept", "user-agent"})
RETURNED = frozenset({"content-type"})
AUTHENTICATION = (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    TIMESTAMP_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
ANSWER_SECONDS = 120.0
# A node that is told that there is nothing for it looks again after three seconds. So it is told
# later: meanwhile the gate looks, often at first.
HOLD_SECONDS = 10.0
# The SuperLink's own bound, which it keeps without a word, less what may be spent in the gate.
OLDEST_SECONDS = TIMESTAMP_TOLERANCE - 60
HEAD_BYTES = 2**20
POLL_SECONDS, SELDOM_SECONDS, SLOWING = 0.05, 1.0, 1.3
BODY_SECONDS = 60.0
LINES_A_MINUTE = 200
CONNECTIONS = 500
REMEMBERED = 200_000

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("pudica.gate")


class Owners:
    """Which nodes messages, and what belongs to them, were given to.

    Flower asks who a node is, not whether a message is its own; who knows a message's number could
    read or remove it. What the gate has not seen (it was started again) is let through.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, set[str]] = OrderedDict()

    def note(self, node: str, answer: PullMessagesResponse) -> None:
        """Note what a node is given."""
        for message in answer.messages_list:
            self._add(node, message.metadata.message_id)
        for tree in answer.message_object_trees:
            self._add_tree(node, tree)

    def check(self, node: str, thing: str) -> None:
        """See whether something is a node's own.

        Raises
        ------
        Refused
            It was given to others.
        """
        if node not in self._of.get(thing, {node}):
            raise Refused(403, f"'{node}' asks for what was given to others")

    def _add_tree(self, node: str, tree: ObjectTree) -> None:
        self._add(node, tree.object_id)
        for child in tree.children:
            self._add_tree(node, child)

    def _add(self, node: str, thing: str) -> None:
        self._of.setdefault(thing, set()).add(node)
        self._of.move_to_end(thing)
        if len(self._of) > REMEMBERED:
            self._of.popitem(last=False)


class Gate:
    """An ASGI application in front of a SuperLink.

    Parameters
    ----------
    folder : Path
        The organiser's, with the roster.
    client : httpx.AsyncClient
        To the SuperLink.
    limits : Limits
    hold : float
        Seconds for which a node waits for a message before it is told that there is none.
    """

    def __init__(
        self,
        folder: Path,
        client: httpx.AsyncClient,
        limits: Limits,
        hold: float = HOLD_SECONDS,
    ) -> None:
        self.folder = folder
        self.client = client
        self.hold = hold
        self.allowance = Allowance(limits)
        self.owners = Owners()
        self._answers: dict[str, Answer] = {}
        self._questions: dict[str, object] = {}
        # Reading an answer takes some times its size.
        self._reading = asyncio.Semaphore(1)
        self._known: dict[str, Registered] = {}
        self._read_at = -1.0
        self._lines = PerMinute()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            if (scope["method"], scope["path"]) == ("GET", "/health"):
                # A node that signs its question asks whether it would get through.
                if FLEET_HTTP_SIGNATURE_HEADER.encode() in dict(scope["headers"]):
                    self._authenticated(_headers(scope))
                await _answered(send, 200, {}, b"")
                return
            answer = await self._passed(scope, receive)
        except Refused as error:
            caller = scope.get("client") or ("?", 0)
            self._say("refused %r from %s: %s", scope["path"][:100], caller[0], error)
            await _answered(send, error.status, {}, json.dumps({"detail": str(error)}).encode())
        except httpx.HTTPError as error:
            self._say("the SuperLink did not answer: %r", error)
            await _answered(send, TRY_LATER, {}, b"")
        else:
            await _answered(send, answer.status_code, answer.headers, answer.content)

    def _say(self, text: str, *values: object) -> None:
        """Write a line; not so many that they fill the disk."""
        lines = self._lines.add("", 1)
        if lines <= LINES_A_MINUTE:
            log.warning(text, *values)
        elif lines == LINES_A_MINUTE + 1:
            log.warning("more lines than %d a minute are left out", LINES_A_MINUTE)

    async def _passed(self, scope: Scope, receive: Receive) -> httpx.Response:
        path = scope["path"]
        if scope["method"] != "POST" or path not in OPEN:
            raise Refused(404, "there is nothing here for nodes")
        headers = _headers(scope)
        node = self._authenticated(headers)
        with self.allowance.request(node.name):
            try:
                body = await asyncio.wait_for(self._body(node.name, receive), BODY_SECONDS)
            except TimeoutError:
                raise Refused(408, f"'{node.name}' was silent in mid-request") from None
            kept = {k: v for k, v in headers.items() if _is_passed(k)}
            try:
                return await self._call(node, path, body, kept, receive)
            except DecodeError as error:
                raise Refused(400, f"'{node.name}' sends what is no request") from error
            except Malformed as error:
                raise Refused(400, f"'{node.name}' {error}") from error

    async def _call(
        self,
        node: Registered,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        receive: Receive,
    ) -> httpx.Response:
        """Return what a node's call gets for an answer, once it is known whose it is."""
        if path in (PUSH, PUSH_OBJECT):
            return await self._taken(node, path, body, headers)
        if path == PULL:
            return await self._pulled(node, body, headers, receive)
        if path == CONFIRM:
            confirmed = ConfirmMessageReceivedRequest.FromString(body)
            self.owners.check(node.name, confirmed.message_object_id)
        elif path == PULL_OBJECT:
            self.owners.check(node.name, PullObjectRequest.FromString(body).object_id)
        answer = await self._asked(path, body, headers)
        if path == ACTIVATE and answer.status_code == THERE_ALREADY:
            return await self._activated_anew(node, body, headers)
        return answer

    async def _asked(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Return what the SuperLink answers.

        Raises
        ------
        Refused
            It can't at the moment.
        """
        answer = await self.client.post(path, content=body, headers=headers)
        if answer.status_code >= 500:
            raise Refused(TRY_LATER, f"the SuperLink stumbled over it: {answer.status_code}")
        return answer

    async def _taken(
        self, node: Registered, path: str, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Take in what a node says, and hand it on once all of it is there."""
        begun = self._answers.get(node.name)
        if path == PUSH:
            return _said(self._begun(node, body, begun).receipt())
        if begun is None:
            raise Malformed("sends a part of an answer that it has not begun, or not to this gate")
        post = partial(self._post, headers)
        try:
            if begun.take(PushObjectRequest.FromString(body)):
                async with begun.alone:
                    async with self._reading:
                        await asyncio.to_thread(begun.read)
                    await begun.hand_on(post)
            return _said(STORED)
        except Spoilt as error:
            self._answers.pop(node.name, None)
            begun.give_up(f"refused at the gate: '{node.name}' {error}")
            await begun.hand_on(post)
            raise
        except NotTaken as error:
            self._answers.pop(node.name, None)
            return error.answer
        except Forgotten:
            raise Refused(TRY_LATER, f"the SuperLink lost the answer of '{node.name}'") from None

    def _begun(self, node: Registered, body: bytes, before: Answer | None) -> Answer:
        """Return the answer that a node begins, or begins again."""
        if len(body) > HEAD_BYTES:
            raise Refused(413, f"'{node.name}' sends a head of more than {HEAD_BYTES} bytes")
        head = PushMessagesRequest.FromString(body)
        if head.node.node_id != node.node:
            raise Refused(403, f"'{node.name}' speaks for another")
        if before and before.head == head:
            return before
        if before and before.alone.locked():
            raise Refused(TRY_LATER, f"the last answer of '{node.name}' is still on its way")
        answer = Answer(head, self.allowance.limits.message_bytes)
        self.owners.check(node.name, answer.to)
        self._answers[node.name] = answer
        return answer

    async def _post(self, headers: Mapping[str, str], path: str, content: bytes) -> bytes:
        """Return what the SuperLink says to a part of an answer that it takes."""
        answer = await self._asked(path, content, headers)
        if answer.status_code != 200:
            raise NotTaken(answer)
        return answer.content

    async def _pulled(
        self, node: Registered, body: bytes, headers: Mapping[str, str], receive: Receive
    ) -> httpx.Response:
        """Return a message for a node, or that there is none, but not at once."""
        gone = asyncio.ensure_future(receive())
        deadline, pause = time.monotonic() + self.hold, POLL_SECONDS
        # Who asks again does not wait any more for what was asked before.
        self._questions[node.name] = question = object()
        try:
            while True:
                answer = await self._asked(PULL, body, headers)
                if answer.status_code != 200:
                    return answer
                pulled = PullMessagesResponse.FromString(answer.content)
                self.owners.note(node.name, pulled)
                if pulled.messages_list or time.monotonic() + pause > deadline:
                    return answer
                went_away, _ = await asyncio.wait({gone}, timeout=pause)
                if went_away or self._questions[node.name] is not question:
                    return answer
                self.allowance.count(node.name)
                pause = min(SLOWING * pause, SELDOM_SECONDS)
        finally:
            gone.cancel()

    async def _activated_anew(
        self, node: Registered, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Let a node that was killed take its own place.

        For a minute Flower takes it for being there, and would refuse it for good.
        """
        gone = DeactivateNodeRequest(node_id=node.node).SerializeToString()
        await self.client.post(DEACTIVATE, content=gone, headers=headers)
        self._say("'%s' begins anew", node.name)
        return await self._asked(ACTIVATE, body, headers)

    def _authenticated(self, headers: Mapping[str, str]) -> Registered:
        """Return the node that signed a request.

        Raises
        ------
        Refused
            Nobody did who is registered.
        """
        try:
            key, stamp, signature = (headers[name] for name in AUTHENTICATION)
            public = b64decode(key, validate=True)
            key = fingerprint_of(public)
            node = self._registered().get(key)
            if node is None:
                raise Refused(
                    401,
                    f"the key {key} is not registered; send its public half (.pub) to the "
                    "organiser",
                )
            age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
            signed = verify_signature(
                bytes_to_public_key(public),
                stamp.encode("ascii"),
                b64decode(signature, validate=True),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise Refused(401, "not signed by a node") from error
        if not signed:
            raise Refused(401, "not signed by a node")
        if not -SYSTEM_TIME_TOLERANCE < age < OLDEST_SECONDS:
            way = "ahead of" if age < 0 else "behind"
            raise Refused(
                401,
                f"the clock of '{node.name}' is {abs(age):.0f} s {way} the organiser's; set it",
            )
        return node

    def _registered(self) -> Mapping[str, Registered]:
        """Return the registered nodes by fingerprint, as the roster has them now."""
        path = self.folder / ROSTER
        changed = path.stat().st_mtime if path.exists() else 0.0
        if changed != self._read_at:
            self._known = {entry.fingerprint: entry for entry in registered(self.folder)}
            self._read_at = changed
        return self._known

    async def _body(self, node: str, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Refused(400, f"'{node}' went away")
            part = event.get("body", b"")
            size += len(part)
            if size > self.allowance.limits.request_bytes:
                raise Refused(
                    413, f"'{node}' sent more than {self.allowance.limits.request_bytes} bytes"
                )
            self.allowance.spend(node, len(part))
            parts.append(part)
            if not event.get("more_body"):
                return b"".join(parts)


class NotTaken(Exception):
    """The SuperLink does not take an answer: its run has ended, or it is none.

    Parameters
    ----------
    answer : httpx.Response
        What it says instead.
    """

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def _said(content: bytes) -> httpx.Response:
    """Return what a SuperLink would say."""
    return httpx.Response(200, content=content, headers={"content-type": PROTOBUF_MEDIA_TYPE})


def _headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def _is_passed(header: str) -> bool:
    return header in PASSED or header.startswith("flwr-")


async def _answered(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    kept = [(k.encode(), v.encode()) for k, v in headers.items() if k.lower() in RETURNED]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Stand before the SuperLink until ended; the arguments are settings as JSON."""
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = Path(settings["folder"])
    trust = ssl.create_default_context(cafile=folder / "ca.crt")
    client = httpx.AsyncClient(
        base_url=f"https://{LOOPBACK}:{settings['superlink']}",
        verify=trust,
        timeout=ANSWER_SECONDS,
        limits=httpx.Limits(max_connections=CONNECTIONS),
        trust_env=False,
    )
    uvicorn.run(
        Gate(folder, client, Limits(**settings["limits"])),
        host=settings["host"],
        port=settings["port"],
        ssl_certfile=folder / "server.crt",
        ssl_keyfile=folder / "server.key",
        log_level="warning",
        access_log=False,
        lifespan="off",
        # With bounds on headers, and without what nodes do not need.
        http="h11",
        ws="none",
        limit_concurrency=CONNECTIONS,
    )
