"""The gate: a reverse proxy that exposes an organiser's SuperLink to registered nodes only.

Whoever reaches Flower's SuperLink can register nodes and start runs, whatever keys the nodes have:
one port serves nodes, the organiser's commands and Flower's own processes, and only nodes are
authenticated. So the SuperLink listens on this machine only, behind this gate, which forwards
nothing but the requests that registered nodes need.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
import time
from base64 import b64decode
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
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError

from pudica.simulations.deployment.allowance import (
    TRY_LATER,
    MinuteCounter,
    RateLimiter,
    RateLimits,
    RequestRefused,
)
from pudica.simulations.deployment.answers import (
    PUSH,
    PUSH_OBJECT,
    STORED,
    Answer,
    ForgottenAnswer,
    MalformedAnswer,
    UnreadableAnswer,
)
from pudica.simulations.deployment.owners import MessageOwners
from pudica.simulations.programs.calling import LOOPBACK
from pudica.strategies.core.registry import NodeRegistry, RegisteredNode, key_fingerprint

PULL = "/v1/fleet/pull-messages"
PULL_OBJECT, CONFIRM = "/v1/fleet/pull-object", "/v1/fleet/confirm-message-received"
ACTIVATE, DEACTIVATE = "/v1/fleet/activate-node", "/v1/fleet/deactivate-node"
OPEN_PATHS = frozenset(
    {
        *(PULL, PUSH, PULL_OBJECT, PUSH_OBJECT, CONFIRM, ACTIVATE, DEACTIVATE),
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
    }
)
# Status with which a SuperLink refuses to activate a node that it believes to be active.
ALREADY_ACTIVE = 412
FORWARDED_HEADERS = frozenset({"content-type", "accept", "user-agent"})
RETURNED_HEADERS = frozenset({"content-type"})
AUTHENTICATION = (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    TIMESTAMP_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
ANSWER_SECONDS = 120.0
# A node without messages polls again only after three seconds. So the gate holds its request open
# and polls the SuperLink instead, frequently at first.
HOLD_SECONDS = 10.0
# The SuperLink's own limit, which it enforces silently, minus the time a request may spend here.
MAX_AGE_SECONDS = TIMESTAMP_TOLERANCE - 60
HEAD_BYTES = 2**20
POLL_SECONDS, MAX_POLL_SECONDS, POLL_BACKOFF = 0.05, 1.0, 1.3
BODY_SECONDS = 60.0
LINES_PER_MINUTE = 200
CONNECTIONS = 500

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("pudica.gate")


class Gate:
    """An ASGI application in front of a SuperLink.

    Parameters
    ----------
    folder : Path
        The organiser's folder, with the registered nodes.
    client : httpx.AsyncClient
        Client of the SuperLink.
    limits : RateLimits
    hold : float
        Seconds for which a node's request for messages is held open if there are none.
    """

    def __init__(
        self,
        folder: Path,
        client: httpx.AsyncClient,
        limits: RateLimits,
        hold: float = HOLD_SECONDS,
    ) -> None:
        self.folder = folder
        self.client = client
        self.hold = hold
        self.limiter = RateLimiter(limits)
        self.owners = MessageOwners()
        self._answers: dict[str, Answer] = {}
        self._open_pulls: dict[str, object] = {}
        # Decoding an answer takes a multiple of its size in memory.
        self._decoding = asyncio.Semaphore(1)
        self._nodes_by_key: dict[str, RegisteredNode] = {}
        self._read_at = -1.0
        self._log_lines = MinuteCounter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            if (scope["method"], scope["path"]) == ("GET", "/health"):
                # A node that signs this request asks whether the gate would accept it.
                if FLEET_HTTP_SIGNATURE_HEADER.encode() in dict(scope["headers"]):
                    self._authenticate(_decode_headers(scope))
                await _send_response(send, 200, {}, b"")
                return
            answer = await self._handle(scope, receive)
        except RequestRefused as error:
            caller = scope.get("client") or ("?", 0)
            self._log_warning("refused %r from %s: %s", scope["path"][:100], caller[0], error)
            await _send_response(
                send, error.status, {}, json.dumps({"detail": str(error)}).encode()
            )
        except httpx.HTTPError as error:
            self._log_warning("the SuperLink did not answer: %r", error)
            await _send_response(send, TRY_LATER, {}, b"")
        else:
            await _send_response(send, answer.status_code, answer.headers, answer.content)

    def _log_warning(self, text: str, *values: object) -> None:
        """Log a warning, unless there are so many that they could fill the disk."""
        lines = self._log_lines.add("", 1)
        if lines <= LINES_PER_MINUTE:
            log.warning(text, *values)
        elif lines == LINES_PER_MINUTE + 1:
            log.warning(
                "further lines of this minute are left out (%d a minute are logged)",
                LINES_PER_MINUTE,
            )

    async def _handle(self, scope: Scope, receive: Receive) -> httpx.Response:
        path = scope["path"]
        if scope["method"] != "POST" or path not in OPEN_PATHS:
            raise RequestRefused(404, "this path is not open to nodes")
        headers = _decode_headers(scope)
        node = self._authenticate(headers)
        with self.limiter.track_request(node.name):
            try:
                body = await asyncio.wait_for(self._read_body(node.name, receive), BODY_SECONDS)
            except TimeoutError:
                raise RequestRefused(
                    408, f"'{node.name}' stopped sending in the middle of a request"
                ) from None
            kept = {k: v for k, v in headers.items() if _is_forwarded_header(k)}
            try:
                return await self._dispatch(node, path, body, kept, receive)
            except DecodeError as error:
                raise RequestRefused(400, f"'{node.name}' sent a malformed request") from error
            except MalformedAnswer as error:
                raise RequestRefused(400, f"'{node.name}' {error}") from error

    async def _dispatch(
        self,
        node: RegisteredNode,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        receive: Receive,
    ) -> httpx.Response:
        """Return the response to an authenticated request."""
        if path in (PUSH, PUSH_OBJECT):
            return await self._accept_answer(node, path, body, headers)
        if path == PULL:
            return await self._pull_message(node, body, headers, receive)
        if path == CONFIRM:
            confirmed = ConfirmMessageReceivedRequest.FromString(body)
            self.owners.check(node.name, confirmed.message_object_id)
        elif path == PULL_OBJECT:
            self.owners.check(node.name, PullObjectRequest.FromString(body).object_id)
        answer = await self._query_superlink(path, body, headers)
        if path == ACTIVATE and answer.status_code == ALREADY_ACTIVE:
            return await self._reactivate(node, body, headers)
        return answer

    async def _query_superlink(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Return the SuperLink's response to a request.

        Raises
        ------
        RequestRefused
            If the SuperLink fails with a server error.
        """
        answer = await self.client.post(path, content=body, headers=headers)
        if answer.status_code >= 500:
            raise RequestRefused(TRY_LATER, f"the SuperLink failed with {answer.status_code}")
        return answer

    async def _accept_answer(
        self, node: RegisteredNode, path: str, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Collect the parts of a node's answer, and forward it once it is complete."""
        current = self._answers.get(node.name)
        if path == PUSH:
            return _build_response(self._begin_answer(node, body, current).build_receipt())
        if current is None:
            raise MalformedAnswer("sent a part of an answer that was not begun at this gate")
        post = partial(self._forward_part, headers)
        try:
            if current.add_part(PushObjectRequest.FromString(body)):
                async with current.lock:
                    async with self._decoding:
                        await asyncio.to_thread(current.decode)
                    await current.forward(post)
            return _build_response(STORED)
        except UnreadableAnswer as error:
            self._answers.pop(node.name, None)
            current.give_up(f"refused at the gate: '{node.name}' {error}")
            await current.forward(post)
            raise
        except RejectedAnswer as error:
            self._answers.pop(node.name, None)
            return error.answer
        except ForgottenAnswer:
            raise RequestRefused(
                TRY_LATER, f"the SuperLink lost the answer of '{node.name}'"
            ) from None

    def _begin_answer(self, node: RegisteredNode, body: bytes, before: Answer | None) -> Answer:
        """Return a new answer of a node, or the current one if the node sends its head again."""
        if len(body) > HEAD_BYTES:
            raise RequestRefused(413, f"'{node.name}' sent a head of more than {HEAD_BYTES} bytes")
        head = PushMessagesRequest.FromString(body)
        if head.node.node_id != node.node:
            raise RequestRefused(403, f"'{node.name}' sent another node's id")
        if before and before.head == head:
            return before
        if before and before.lock.locked():
            raise RequestRefused(TRY_LATER, f"the last answer of '{node.name}' is still on its way")
        answer = Answer(head, self.limiter.limits.message_bytes)
        self.owners.check(node.name, answer.replies_to)
        self._answers[node.name] = answer
        return answer

    async def _forward_part(self, headers: Mapping[str, str], path: str, content: bytes) -> bytes:
        """Send a part of an answer to the SuperLink, and return its response."""
        answer = await self._query_superlink(path, content, headers)
        if answer.status_code != 200:
            raise RejectedAnswer(answer)
        return answer.content

    async def _pull_message(
        self, node: RegisteredNode, body: bytes, headers: Mapping[str, str], receive: Receive
    ) -> httpx.Response:
        """Return a message for a node, waiting for up to ``hold`` seconds until there is one."""
        disconnect = asyncio.ensure_future(receive())
        deadline, pause = time.monotonic() + self.hold, POLL_SECONDS
        # A new request of the node replaces the one that is held open.
        self._open_pulls[node.name] = pull = object()
        try:
            while True:
                answer = await self._query_superlink(PULL, body, headers)
                if answer.status_code != 200:
                    return answer
                pulled = PullMessagesResponse.FromString(answer.content)
                self.owners.record_delivery(node.name, pulled)
                if pulled.messages_list or time.monotonic() + pause > deadline:
                    return answer
                disconnected, _ = await asyncio.wait({disconnect}, timeout=pause)
                if disconnected or self._open_pulls[node.name] is not pull:
                    return answer
                self.limiter.count_request(node.name)
                pause = min(POLL_BACKOFF * pause, MAX_POLL_SECONDS)
        finally:
            disconnect.cancel()

    async def _reactivate(
        self, node: RegisteredNode, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Activate a node again that was killed.

        For a minute after the kill, Flower believes it to be active and would refuse it for good.
        """
        request = DeactivateNodeRequest(node_id=node.node).SerializeToString()
        await self.client.post(DEACTIVATE, content=request, headers=headers)
        self._log_warning("'%s' was restarted", node.name)
        return await self._query_superlink(ACTIVATE, body, headers)

    def _authenticate(self, headers: Mapping[str, str]) -> RegisteredNode:
        """Return the node that signed a request.

        Raises
        ------
        RequestRefused
            If the signature is missing, invalid or too old, or the node is not registered.
        """
        try:
            key, stamp, signature = (headers[name] for name in AUTHENTICATION)
            public = b64decode(key, validate=True)
            key = key_fingerprint(public)
            node = self._read_registry().get(key)
            if node is None:
                raise RequestRefused(
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
            raise RequestRefused(401, "not signed by a node") from error
        if not signed:
            raise RequestRefused(401, "not signed by a node")
        if not -SYSTEM_TIME_TOLERANCE < age < MAX_AGE_SECONDS:
            way = "ahead of" if age < 0 else "behind"
            raise RequestRefused(
                401,
                f"the clock of '{node.name}' is {abs(age):.0f} s {way} the organiser's; set it",
            )
        return node

    def _read_registry(self) -> Mapping[str, RegisteredNode]:
        """Return the registered nodes by key fingerprint; reload them if the file has changed."""
        registry = NodeRegistry(self.folder)
        path = registry.path
        changed = path.stat().st_mtime if path.exists() else 0.0
        if changed != self._read_at:
            self._nodes_by_key = {entry.fingerprint: entry for entry in registry.nodes()}
            self._read_at = changed
        return self._nodes_by_key

    async def _read_body(self, node: str, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise RequestRefused(400, f"'{node}' disconnected")
            part = event.get("body", b"")
            size += len(part)
            if size > self.limiter.limits.request_bytes:
                raise RequestRefused(
                    413, f"'{node}' sent more than {self.limiter.limits.request_bytes} bytes"
                )
            self.limiter.count_bytes(node, len(part))
            parts.append(part)
            if not event.get("more_body"):
                return b"".join(parts)


class RejectedAnswer(Exception):
    """The SuperLink rejects an answer, for example because the run has ended.

    Parameters
    ----------
    answer : httpx.Response
        The SuperLink's response.
    """

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def _build_response(content: bytes) -> httpx.Response:
    """Return a response as a SuperLink would send it."""
    return httpx.Response(200, content=content, headers={"content-type": PROTOBUF_MEDIA_TYPE})


def _decode_headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def _is_forwarded_header(header: str) -> bool:
    return header in FORWARDED_HEADERS or header.startswith("flwr-")


async def _send_response(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    kept = [(k.encode(), v.encode()) for k, v in headers.items() if k.lower() in RETURNED_HEADERS]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Run the gate until stopped; ``argv[1]`` contains its settings as JSON."""
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
        Gate(folder, client, RateLimits(**settings["limits"])),
        host=settings["host"],
        port=settings["port"],
        ssl_certfile=folder / "server.crt",
        ssl_keyfile=folder / "server.key",
        log_level="warning",
        access_log=False,
        lifespan="off",
        # h11 limits headers; nodes need no WebSockets.
        http="h11",
        ws="none",
        limit_concurrency=CONNECTIONS,
    )
