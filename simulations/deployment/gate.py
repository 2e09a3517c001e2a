"""The gate: what of an organiser's SuperLink is open to the world.

Whoever reaches Flower's SuperLink may register nodes and start runs, whatever keys nodes have:
its port serves nodes, the organiser's commands and its own processes alike, and only nodes are
asked who they are. So the SuperLink listens on this machine alone, and in front of it stands
this gate, which lets nothing through but what registered nodes need.
"""

from __future__ import annotations

import json
import logging
import ssl
import sys
import time
from base64 import b64decode
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from flwr.common.constant import TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from simulations.deployment.authority import fingerprint_of
from simulations.programs.calling import LOOPBACK
from strategies.roster import ROSTER, registered

OPEN = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
HOP = frozenset({"connection", "host", "content-length", "transfer-encoding", "accept-encoding"})
TIMEOUT_SECONDS = 120.0
WINDOW_SECONDS = 60.0

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
    bytes_a_minute, requests_a_minute : int
    """

    request_bytes: int = 2**26
    bytes_a_minute: int = 2**32
    requests_a_minute: int = 6000


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


class Allowance:
    """What nodes have sent in the last minute.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._since = time.monotonic()
        self._requests: defaultdict[str, int] = defaultdict(int)
        self._bytes: defaultdict[str, int] = defaultdict(int)

    def spend(self, node: str, size: int, requests: int = 0) -> None:
        """Count what a node sends.

        Raises
        ------
        Refused
            It is more than it may.
        """
        if time.monotonic() - self._since > WINDOW_SECONDS:
            self._since = time.monotonic()
            self._requests.clear()
            self._bytes.clear()
        self._requests[node] += requests
        self._bytes[node] += size
        if self._requests[node] > self.limits.requests_a_minute:
            raise Refused(429, f"more than {self.limits.requests_a_minute} requests a minute")
        if self._bytes[node] > self.limits.bytes_a_minute:
            raise Refused(429, f"more than {self.limits.bytes_a_minute} bytes a minute")


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
        self._known: dict[str, str] = {}
        self._read_at = -1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            if (scope["method"], scope["path"]) == ("GET", "/health"):
                answer = await self.client.get("/health")
            else:
                answer = await self._passed(scope, receive)
        except Refused as error:
            caller = scope.get("client") or ("?", 0)
            log.warning("refused %s from %s: %s", scope["path"][:100], caller[0], error)
            await _answered(send, error.status, {}, json.dumps({"detail": str(error)}).encode())
        except httpx.HTTPError as error:
            log.warning("the SuperLink did not answer: %r", error)
            await _answered(send, 503, {}, b"")
        else:
            await _answered(send, answer.status_code, answer.headers, answer.content)

    async def _passed(self, scope: Scope, receive: Receive) -> httpx.Response:
        path = scope["path"]
        if scope["method"] != "POST" or path not in OPEN:
            raise Refused(404, "there is nothing here for nodes")
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        node = self._authenticated(headers)
        self.allowance.spend(node, 0, requests=1)
        body = await self._body(node, receive)
        passed = {key: value for key, value in headers.items() if key not in HOP}
        return await self.client.post(path, content=body, headers=passed)

    def _authenticated(self, headers: Mapping[str, str]) -> str:
        """Return the name of the node that signed a request.

        Raises
        ------
        Refused
            Nobody did who is registered.
        """
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            stamp = headers[TIMESTAMP_HEADER]
            age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
            signed = verify_signature(bytes_to_public_key(key), stamp.encode("ascii"), signature)
        except (KeyError, ValueError, TypeError) as error:
            raise Refused(401, "not signed by a node") from error
        name = self._registered().get(fingerprint_of(key))
        if not signed or name is None:
            raise Refused(401, "this node is not registered; send its public key to the organiser")
        if abs(age) > TIMESTAMP_TOLERANCE:
            raise Refused(
                401, f"the clock of '{name}' is {age:+.0f} s off the organiser's; set the clock"
            )
        return name

    def _registered(self) -> Mapping[str, str]:
        """Return the registered nodes' names by fingerprint, as the roster has them now."""
        path = self.folder / ROSTER
        changed = path.stat().st_mtime if path.exists() else 0.0
        if changed != self._read_at:
            self._known = {entry.fingerprint: entry.name for entry in registered(self.folder)}
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


async def _answered(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    # The body is as the client has decoded it.
    dropped = {*HOP, "content-encoding", "date", "server"}
    kept = [(k.encode(), v.encode()) for k, v in headers.items() if k.lower() not in dropped]
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
        timeout=TIMEOUT_SECONDS,
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
    )
