"""What of a SuperLink is open to the world."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from simulations.deployment import authority
from simulations.deployment.gate import OPEN, Gate, Limits
from strategies.roster import ROSTER

PULL = "/v1/fleet/pull-messages"

Call = Callable[..., httpx.Response]


class SuperLink:
    """Answers whatever is let through, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.there = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.there:
            raise httpx.ConnectError("nobody listens")
        self.asked.append(request)
        return httpx.Response(200, content=b"answer", headers={"content-type": "x/y"})


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def gate(tmp_path: Path, superlink: SuperLink) -> Gate:
    for name in ("ann", "bob", "eve"):
        authority.new_node_key(tmp_path / name, tmp_path / f"{name}.pub", name)
    enrol(tmp_path, "ann", "bob")
    client = httpx.AsyncClient(base_url="https://x", transport=httpx.MockTransport(superlink))
    return Gate(tmp_path, client, Limits(request_bytes=1000, requests_a_minute=5))


@pytest.fixture
def call(gate: Gate, tmp_path: Path) -> Call:
    def called(
        path: str, node: str | None = None, body: bytes = b"", method: str = "POST", **changes: str
    ) -> httpx.Response:
        headers = {**signed(tmp_path / node), **changes} if node else changes

        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(gate)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="https://gate") as client:
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(once())

    return called


def enrol(folder: Path, *names: str) -> None:
    entries = [
        {
            "name": name,
            "node": number,
            "fingerprint": authority.fingerprint(folder / f"{name}.pub"),
            "since": "",
        }
        for number, name in enumerate(names)
    ]
    (folder / ROSTER).write_text(json.dumps(entries))


def signed(key: Path, age: float = 0) -> dict[str, str]:
    private = load_ssh_private_key(key.read_bytes(), None)
    stamp = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    public = public_key_to_bytes(private.public_key())  # type: ignore[arg-type]
    signature = sign_message(private, stamp.encode())  # type: ignore[arg-type]
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode(),
    }


@pytest.mark.parametrize("path", sorted(OPEN))
def test_a_registered_node_gets_through(call: Call, superlink: SuperLink, path: str) -> None:
    answer = call(path, "ann", b"question")
    assert (answer.status_code, answer.content) == (200, b"answer")
    assert answer.headers["content-type"] == "x/y"
    (asked,) = superlink.asked
    assert (asked.url.path, asked.content) == (path, b"question")
    assert asked.headers[FLEET_HTTP_PUBLIC_KEY_HEADER]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_is_open_even_to_a_registered_node(
    call: Call, superlink: SuperLink, path: str
) -> None:
    assert call(path, "ann").status_code == 404
    assert call(path, "ann", method="GET").status_code == 404
    assert not superlink.asked


def test_who_is_not_registered_or_did_not_sign_is_refused(
    call: Call, superlink: SuperLink, tmp_path: Path
) -> None:
    assert call(PULL).status_code == 401
    answer = call(PULL, "eve")
    assert answer.status_code == 401
    assert "not registered" in answer.json()["detail"]
    stolen = signed(tmp_path / "ann")[FLEET_HTTP_PUBLIC_KEY_HEADER]
    assert call(PULL, "eve", **{FLEET_HTTP_PUBLIC_KEY_HEADER: stolen}).status_code == 401
    for header in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER):
        for nonsense in ("", "!", "AAAA"):
            assert call(PULL, "ann", **{header: nonsense}).status_code == 401
    assert not superlink.asked


def test_a_clock_that_is_off_is_told(call: Call, tmp_path: Path) -> None:
    answer = call(PULL, **signed(tmp_path / "ann", age=3600))
    assert answer.status_code == 401
    assert "the clock of 'ann' is +3600 s off" in answer.json()["detail"]


def test_registering_takes_effect_at_once(call: Call, tmp_path: Path) -> None:
    assert call(PULL, "eve").status_code == 401
    enrol(tmp_path, "ann", "bob", "eve")
    assert call(PULL, "eve").status_code == 200


def test_a_node_that_sends_too_much_is_stopped_and_others_are_not(
    call: Call, superlink: SuperLink
) -> None:
    assert call(PULL, "ann", b"x" * 1001).status_code == 413
    assert not superlink.asked
    for _ in range(4):
        assert call(PULL, "ann").status_code == 200
    assert call(PULL, "ann").status_code == 429
    assert call(PULL, "bob").status_code == 200


def test_bytes_count_too(tmp_path: Path, gate: Gate, call: Call) -> None:
    gate.allowance.limits = Limits(bytes_a_minute=1500)
    assert call(PULL, "ann", b"x" * 1000).status_code == 200
    assert call(PULL, "ann", b"x" * 1000).status_code == 429


def test_a_superlink_that_is_not_there_is_tried_again_later(
    call: Call, superlink: SuperLink
) -> None:
    superlink.there = False
    assert call(PULL, "ann").status_code == 503
    superlink.there = True
    assert call(PULL, "ann").status_code == 200
    assert call("/health", method="GET").status_code == 200
