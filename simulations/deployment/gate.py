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
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError

from simulations.programs.calling import LOOPBACK
from strategies.roster import ROSTER, Registered, fingerprint_of, registered

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"
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
# SuperNodes wait a moment after this one and ask again; most others end them. So would what a
# SuperLink says whose database is locked for a moment, as it is under load.
TRY_LATER = 503
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
BODY_SECONDS = 60.0
WINDOW_SECONDS = 60.0
LINES_A_MINUTE = 200
CONNECTIONS = 500
REMEMBERED = 200_000

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("pudica.gate")


class Limits(NamedTuple):
    """How much one node may send.

    Attributes
    ----------
    request_bytes : int
        In one request; Flower cuts messages into pieces of 5 MiB.
    message_bytes : int
        Between two messages that it is given: in answer to one.
    bytes_a_minute, requests_a_minute : int
    open_requests : int
        At once.
    """

    request_bytes: int = 2**23
    message_bytes: int = 2**30
    bytes_a_minute: int = 2**32
    requests_a_minute: int = 6000
    open_requests: int = 16


class Refused(Exception):
    """A request that is not let through.

    Parameters
    ----------
    status : int
        Of HTTP.
    why : str
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class PerMinute:
    """Counts that begin again each minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, of: str, more: int) -> int:
        """Count, and return what this minute has."""
        if time.monotonic() - self._since > WINDOW_SECONDS:
            self._since = time.monotonic()
            self._counts.clear()
        self._counts[of] += more
        return self._counts[of]


class Allowance:
    """What nodes have sent in the last minute, and ask at this moment.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._requests = PerMinute()
        self._bytes = PerMinute()
        self._open: defaultdict[str, int] = defaultdict(int)
        self._answer: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def request(self, node: str) -> Iterator[None]:
        """Count a request for as long as it is open.

        Raises
        ------
        Refused
            There are too many.
        """
        most = self.limits.requests_a_minute
        if self._requests.add(node, 1) > most:
            raise Refused(TRY_LATER, f"'{node}' sends more than {most} requests a minute")
        if self._open[node] >= self.limits.open_requests:
            raise Refused(TRY_LATER, f"'{node}' has {self._open[node]} requests open")
        self._open[node] += 1
        try:
            yield
        finally:
            self._open[node] -= 1

    def spend(self, node: str, size: int) -> None:
        """Count the bytes that a node sends.

        Raises
        ------
        Refused
            It is more than it may.
        """
        most = self.limits.bytes_a_minute
        if self._bytes.add(node, size) > most:
            raise Refused(TRY_LATER, f"'{node}' sends more than {most} bytes a minute")

    def answered(self, node: str, size: int) -> None:
        """Count the bytes of an answer that got through."""
        self._answer[node] += size

    def check_answer(self, node: str, size: int) -> None:
        """See whether an answer may have so many bytes more.

        Raises
        ------
        Refused
            It may not.
        """
        if self._answer[node] + size > self.limits.message_bytes:
            raise Refused(
                413,
                f"'{node}' answers one message with more than {self.limits.message_bytes} bytes; "
                "where that is right, set limits: {message_bytes: …} in organiser.yaml",
            )

    def given(self, node: str) -> None:
        """Begin to count anew: the node was given a message."""
        self._answer[node] = 0


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
    """

    def __init__(self, folder: Path, client: httpx.AsyncClient, limits: Limits) -> None:
        self.folder = folder
        self.client = client
        self.allowance = Allowance(limits)
        self.owners = Owners()
        self._known: dict[str, Registered] = {}
        self._read_at = -1.0
        self._lines = PerMinute()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            if (scope["method"], scope["path"]) == ("GET", "/health"):
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
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        node = self._authenticated(headers)
        with self.allowance.request(node.name):
            try:
                body = await asyncio.wait_for(self._body(node.name, receive), BODY_SECONDS)
            except TimeoutError:
                raise Refused(408, f"'{node.name}' was silent in mid-request") from None
            pushes = path in (PUSH, PUSH_OBJECT)
            if pushes:
                self.allowance.check_answer(node.name, len(body))
            self._check(node, path, body)
            kept = {k: v for k, v in headers.items() if _is_passed(k)}
            answer = await self.client.post(path, content=body, headers=kept)
            if path == ACTIVATE and answer.status_code == THERE_ALREADY:
                answer = await self._activated_anew(node, body, kept)
        if answer.status_code >= 500:
            raise Refused(TRY_LATER, f"the SuperLink stumbled over it: {answer.status_code}")
        if pushes and answer.status_code == 200:
            self.allowance.answered(node.name, len(body))
        if path == PULL and answer.status_code == 200:
            pulled = PullMessagesResponse.FromString(answer.content)
            self.owners.note(node.name, pulled)
            if pulled.messages_list:
                self.allowance.given(node.name)
        return answer

    async def _activated_anew(
        self, node: Registered, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Let a node that was killed take its own place.

        For a minute Flower takes it for being there, and would refuse it for good.
        """
        gone = DeactivateNodeRequest(node_id=node.node).SerializeToString()
        await self.client.post(DEACTIVATE, content=gone, headers=headers)
        self._say("'%s' begins anew", node.name)
        return await self.client.post(ACTIVATE, content=body, headers=headers)

    def _check(self, node: Registered, path: str, body: bytes) -> None:
        """See that a node speaks for itself, answers what it was asked, and takes what is its own.

        Raises
        ------
        Refused
            If not.
        """
        try:
            if path == PUSH:
                _check_answer(node, PushMessagesRequest.FromString(body))
            elif path == CONFIRM:
                asked = ConfirmMessageReceivedRequest.FromString(body)
                self.owners.check(node.name, asked.message_object_id)
            elif path == PULL_OBJECT:
                self.owners.check(node.name, PullObjectRequest.FromString(body).object_id)
        except DecodeError as error:
            raise Refused(400, f"'{node.name}' sends what is no request") from error

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
            node = self._registered().get(fingerprint_of(public))
            if node is None:
                raise Refused(
                    401, "this node is not registered; send its public key to the organiser"
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
        # The SuperLink's own bounds, which it keeps without a word.
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE:
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


def _is_passed(header: str) -> bool:
    return header in PASSED or header.startswith("flwr-")


def _check_answer(node: Registered, pushed: PushMessagesRequest) -> None:
    """See that what a node sends is an answer, and in its own name.

    Without this, one node could send others what looks like the organiser's.
    """
    for message in pushed.messages_list:
        if not message.metadata.reply_to_message_id:
            raise Refused(403, f"'{node.name}' sends what is no answer")
        if message.metadata.src_node_id != node.node:
            raise Refused(403, f"'{node.name}' speaks for another")
    if pushed.node.node_id != node.node:
        raise Refused(403, f"'{node.name}' speaks for another")


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
