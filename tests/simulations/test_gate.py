"""What of a SuperLink is open to the world."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    DeactivateNodeRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
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
        self.there_already = False
        self.status = 200
        self.answer = b""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.there:
            raise httpx.ConnectError("nobody listens")
        self.asked.append(request)
        if request.url.path.endswith("/deactivate-node"):
            self.there_already = False
        status = 412 if self.there_already else self.status
        return httpx.Response(status, content=self.answer, headers={"content-type": "x/y"})


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


def asgi(gate: Gate, path: str, method: str, headers: dict[str, str]) -> int:
    async def body() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b""}

    return asyncio.run(answered(gate, path, method, headers, body))


async def answered(
    gate: Gate,
    path: str,
    method: str,
    headers: dict[str, str],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
) -> int:
    """Ask an ASGI application by hand; return the status."""
    said: list[MutableMapping[str, Any]] = []

    async def send(event: MutableMapping[str, Any]) -> None:
        said.append(event)

    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    await gate(scope, receive, send)
    return int(said[0]["status"])


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


def test_a_node_that_was_killed_takes_its_own_place(call: Call, superlink: SuperLink) -> None:
    """For a minute a SuperLink takes it for being there, and refuses it."""
    superlink.there_already = True
    assert call("/v1/fleet/activate-node", "bob", b"me").status_code == 200
    first, second, third = superlink.asked
    assert first.content == third.content == b"me"
    assert second.url.path == "/v1/fleet/deactivate-node"
    assert DeactivateNodeRequest.FromString(second.content).node_id == 1
    superlink.there_already = True
    assert call(PULL, "bob").status_code == 412


def test_a_superlink_that_stumbles_ends_no_node(call: Call, superlink: SuperLink) -> None:
    superlink.status = 500
    assert call(PULL, "ann").status_code == 503


@pytest.mark.parametrize("path", sorted(OPEN))
def test_a_registered_node_gets_through(call: Call, superlink: SuperLink, path: str) -> None:
    superlink.answer = b"\n\x00"
    question = PushMessagesRequest().SerializeToString()
    answer = call(path, "ann", question, cookie="c", **{"flwr-version": "1", "x-other": "2"})
    assert (answer.status_code, answer.content) == (200, superlink.answer)
    assert answer.headers["content-type"] == "x/y"
    (asked,) = superlink.asked
    assert (asked.url.path, asked.content) == (path, question)
    assert {FLEET_HTTP_PUBLIC_KEY_HEADER, "flwr-version"} <= set(asked.headers)
    assert not {"cookie", "x-other"} & set(asked.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "//v1/control/start-run",
        "/v1/fleet/pull-messages\n2026 refused by nobody",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_is_open_even_to_a_registered_node(
    gate: Gate, superlink: SuperLink, tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked as no client of HTTP would: the path is as it stands here."""
    for method in ("POST", "GET", "PUT"):
        assert asgi(gate, path, method, signed(tmp_path / "ann")) == 404
    assert not superlink.asked
    assert "\n2026" not in caplog.text


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
    for age, told in ((3600, "3600 s behind"), (-20, "20 s ahead of")):
        answer = call(PULL, **signed(tmp_path / "ann", age=age))
        assert answer.status_code == 401
        assert f"the clock of 'ann' is {told} the organiser's" in answer.json()["detail"]
    assert call(PULL, **signed(tmp_path / "ann", age=-3)).status_code == 200


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
    assert call(PULL, "ann").status_code == 503
    assert call(PULL, "bob").status_code == 200


def test_bytes_count_too(tmp_path: Path, gate: Gate, call: Call) -> None:
    gate.allowance.limits = Limits(bytes_a_minute=1500)
    assert call(PULL, "ann", b"x" * 1000).status_code == 200
    assert call(PULL, "ann", b"x" * 1000).status_code == 503


def test_an_answer_has_a_size_that_it_may_have(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    """Counted from one message that a node is given to the next."""
    gate.allowance.limits = Limits(message_bytes=1500)
    given = PullMessagesResponse()
    given.messages_list.add().metadata.message_id = "one"
    push = "/v1/fleet/push-object"
    assert call(push, "ann", b"x" * 1000).status_code == 200
    refused = call(push, "ann", b"x" * 1000)
    assert refused.status_code == 413
    assert "message_bytes" in refused.json()["detail"]
    assert call(push, "bob", b"x" * 1000).status_code == 200
    superlink.answer = given.SerializeToString()
    assert call(PULL, "ann", b"x" * 100).status_code == 200
    assert call(push, "ann", b"x" * 1000).status_code == 200


def test_a_node_may_not_keep_many_requests_open(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.deployment.gate.BODY_SECONDS", 0.2)
    gate.allowance.limits = Limits(open_requests=2)

    async def silent() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def three() -> list[int]:
        headers = signed(tmp_path / "ann")
        return list(
            await asyncio.gather(*(answered(gate, PULL, "POST", headers, silent) for _ in "123"))
        )

    assert asyncio.run(three()) == [408, 408, 503]


# ------------------------------------------------------- one node in another's name


def pushed(**metadata: Any) -> bytes:
    sent = PushMessagesRequest()
    sent.node.node_id = metadata.pop("node", 0)
    message = sent.messages_list.add()
    for key, value in metadata.items():
        setattr(message.metadata, key, value)
    return bytes(sent.SerializeToString())


@pytest.mark.parametrize(
    ("node", "metadata", "status"),
    [
        ("ann", {"src_node_id": 0, "reply_to_message_id": "m"}, 200),
        ("bob", {"node": 1, "src_node_id": 1, "reply_to_message_id": "m"}, 200),
        ("ann", {"src_node_id": 0}, 403),
        ("ann", {"src_node_id": 1, "reply_to_message_id": "m"}, 403),
        ("bob", {"node": 1, "src_node_id": 0, "reply_to_message_id": "m"}, 403),
        ("bob", {"node": 0, "src_node_id": 1, "reply_to_message_id": "m"}, 403),
    ],
)
def test_a_node_sends_answers_only_and_its_own(
    call: Call, superlink: SuperLink, node: str, metadata: dict[str, Any], status: int
) -> None:
    assert call("/v1/fleet/push-messages", node, pushed(**metadata)).status_code == status
    assert len(superlink.asked) == (status == 200)


def test_a_node_takes_no_message_that_was_given_to_another(
    call: Call, superlink: SuperLink
) -> None:
    given = PullMessagesResponse()
    given.messages_list.add().metadata.message_id = "letter"
    tree = given.message_object_trees.add()
    tree.object_id = "letter"
    tree.children.add().object_id = "page"
    superlink.answer = given.SerializeToString()
    assert call(PULL, "ann").status_code == 200
    for node, status in (("ann", 200), ("bob", 403)):
        page = PullObjectRequest(object_id="page").SerializeToString()
        letter = ConfirmMessageReceivedRequest(message_object_id="letter").SerializeToString()
        assert call("/v1/fleet/pull-object", node, page).status_code == status
        assert call("/v1/fleet/confirm-message-received", node, letter).status_code == status
    other = PullObjectRequest(object_id="unseen").SerializeToString()
    assert call("/v1/fleet/pull-object", "bob", other).status_code == 200


def test_nonsense_is_no_request(call: Call, superlink: SuperLink) -> None:
    assert call("/v1/fleet/push-messages", "ann", b"\xff\xff").status_code == 400
    assert not superlink.asked


def test_a_superlink_that_is_not_there_is_tried_again_later(
    call: Call, superlink: SuperLink
) -> None:
    superlink.there = False
    assert call(PULL, "ann").status_code == 503
    superlink.there = True
    assert call(PULL, "ann").status_code == 200
    assert call("/health", method="GET").status_code == 200
