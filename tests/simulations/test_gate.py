"""What of a SuperLink is open to the world."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flower_answers import head_of, message_of, parts_of, session_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    DeactivateNodeRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from pudica.simulations.deployment import authority
from pudica.simulations.deployment.allowance import RateLimits
from pudica.simulations.deployment.answers import PUSH, PUSH_OBJECT
from pudica.simulations.deployment.gate import OPEN_PATHS, Gate
from pudica.strategies.core.registry import REGISTRY

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
        self.later: list[bytes] = []
        self.stores = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.there:
            raise httpx.ConnectError("nobody listens")
        self.asked.append(request)
        if request.url.path.endswith("/deactivate-node"):
            self.there_already = False
        if self.later:
            self.answer = self.later.pop(0)
        if request.url.path == PUSH_OBJECT and self.status == 200:
            stored = PushObjectResponse(stored=self.stores)
            return httpx.Response(200, content=stored.SerializeToString())
        status = 412 if self.there_already else self.status
        return httpx.Response(status, content=self.answer, headers={"content-type": "x/y"})


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def gate(tmp_path: Path, superlink: SuperLink) -> Gate:
    for name in ("ann", "bob", "eve"):
        authority.create_node_key(tmp_path / name, tmp_path / f"{name}.pub", name)
    enrol(tmp_path, "ann", "bob")
    client = httpx.AsyncClient(base_url="https://x", transport=httpx.MockTransport(superlink))
    return Gate(tmp_path, client, RateLimits(request_bytes=1000, requests_a_minute=5), hold=0)


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
            "fingerprint": authority.compute_fingerprint(folder / f"{name}.pub"),
            "since": "",
        }
        for number, name in enumerate(names)
    ]
    (folder / REGISTRY).write_text(json.dumps(entries))


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


@pytest.mark.parametrize("path", sorted(OPEN_PATHS - {PUSH, PUSH_OBJECT}))
def test_a_registered_node_gets_through(call: Call, superlink: SuperLink, path: str) -> None:
    """As it is; answers are put together first, see below."""
    superlink.answer = b"\n\x00"
    question = PullObjectRequest().SerializeToString()
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
    # What is refused makes no line of its own; whoever else has changed how lines look.
    assert caplog.records
    assert not any("\n" in record.getMessage() for record in caplog.records)


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


def test_a_node_may_ask_whether_it_would_get_through(call: Call, tmp_path: Path) -> None:
    assert call("/health", None, method="GET").status_code == 200
    assert call("/health", "ann", method="GET").status_code == 200
    answer = call("/health", "eve", method="GET")
    assert answer.status_code == 401
    assert authority.compute_fingerprint(tmp_path / "eve.pub") in answer.json()["detail"]


def test_a_node_signs_as_flower_does(call: Call, tmp_path: Path) -> None:
    headers = authority.build_signed_headers(tmp_path / "ann")
    assert call(PULL, None, **headers).status_code == 200


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
    gate.limiter.limits = RateLimits(bytes_a_minute=1500)
    assert call(PULL, "ann", b"x" * 1000).status_code == 200
    assert call(PULL, "ann", b"x" * 1000).status_code == 503


def test_an_answer_has_a_size_that_it_may_have(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    """And the next one has it, too."""
    gate.limiter.limits = RateLimits(message_bytes=1500)
    large, small = (
        RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(size))})}) for size in (300, 30)
    )
    refused = send(call, "ann", message_of(large, 0, "m"))[-1]
    assert refused.status_code == 400
    assert "message_bytes" in refused.json()["detail"]
    assert "message_bytes" in told_instead(superlink)
    for node, number in (("ann", 0), ("bob", 1)):
        assert send(call, node, message_of(small, number, "m"))[-1].status_code == 200


def test_a_node_may_not_keep_many_requests_open(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pudica.simulations.deployment.gate.BODY_SECONDS", 0.2)
    gate.limiter.limits = RateLimits(open_requests=2)

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


WORDS = RecordDict({"config": ConfigRecord({"a": "b"})})


def send(call: Call, node: str, message: Message, by: int | None = None) -> list[httpx.Response]:
    """Send an answer as a SuperNode does, as far as it gets; return what it is told."""
    number = message.metadata.src_node_id if by is None else by
    told = [call(PUSH, node, head_of(message, number).SerializeToString())]
    parts = parts_of(message, session_of(told[0].content)) if told[0].status_code == 200 else []
    for part in parts:
        if told[-1].status_code == 200:
            told.append(call(PUSH_OBJECT, node, part.SerializeToString()))
    return told


def test_an_answer_is_handed_on_once_all_of_it_is_there(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    """A run would wait for the rest of it, and for nobody else."""
    gate.limiter.limits = RateLimits()
    message = message_of(WORDS, 0, "m")
    receipt = call(PUSH, "ann", head_of(message, 0).SerializeToString())
    *parts, last = parts_of(message, session_of(receipt.content))
    assert set(PushMessagesResponse.FromString(receipt.content).objects_to_push) == {
        part.object_id for part in (*parts, last)
    }
    for part in parts:
        assert call(PUSH_OBJECT, "ann", part.SerializeToString()).status_code == 200
    assert not superlink.asked
    needed = [part.object_id for part in (*parts, last)][:-1]
    superlink.answer = PushMessagesResponse(
        objects_to_push=needed, session_id="theirs"
    ).SerializeToString()
    told = call(PUSH_OBJECT, "ann", last.SerializeToString())
    assert PushObjectResponse.FromString(told.content).stored
    head, *rest = superlink.asked
    assert head.url.path == PUSH
    assert head.content == head_of(message, 0).SerializeToString()
    handed_on = [PushObjectRequest.FromString(request.content) for request in rest]
    assert {part.object_id for part in handed_on} == set(needed)
    assert {part.session_id for part in handed_on} == {"theirs"}


def begin(call: Call) -> tuple[bytes, list[bytes]]:
    """Begin to send an answer; return the receipt, and the parts that are to follow."""
    message = message_of(WORDS, 0, "m")
    receipt = call(PUSH, "ann", head_of(message, 0).SerializeToString()).content
    return receipt, [p.SerializeToString() for p in parts_of(message, session_of(receipt))]


def test_a_superlink_that_stumbles_gets_the_rest_of_an_answer_later(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    gate.limiter.limits = RateLimits()
    receipt, parts = begin(call)
    superlink.answer = receipt
    superlink.status = 500
    assert [call(PUSH_OBJECT, "ann", part).status_code for part in parts][-1] == 503
    superlink.status = 200
    assert call(PUSH_OBJECT, "ann", parts[-1]).status_code == 200
    assert [request.url.path for request in superlink.asked[1:]] == [PUSH] + [PUSH_OBJECT] * len(
        parts
    )
    # What is repeated though it had come is told that it is there.
    assert call(PUSH_OBJECT, "ann", parts[-1]).status_code == 200
    assert len(superlink.asked) == 2 + len(parts)


def test_a_run_that_has_ended_is_told(call: Call, superlink: SuperLink) -> None:
    superlink.status = 403
    assert send(call, "ann", message_of(WORDS, 0, "m"))[-1].status_code == 403


@pytest.mark.parametrize(
    ("node", "by", "of", "to", "status"),
    [
        ("ann", 0, 0, "m", 200),
        ("bob", 1, 1, "m", 200),
        ("ann", 0, 0, "", 400),
        ("ann", 0, 1, "m", 400),
        ("bob", 1, 0, "m", 400),
        ("bob", 0, 1, "m", 403),
        ("bob", 0, 0, "m", 403),
    ],
)
def test_a_node_sends_answers_only_and_its_own(
    call: Call, superlink: SuperLink, node: str, by: int, of: int, to: str, status: int
) -> None:
    assert send(call, node, message_of(WORDS, of, to), by)[-1].status_code == status
    assert bool(superlink.asked) == (status == 200)


def test_nobody_answers_what_another_was_asked(call: Call, superlink: SuperLink) -> None:
    given = PullMessagesResponse()
    given.messages_list.add().metadata.message_id = "letter"
    superlink.answer = given.SerializeToString()
    assert call(PULL, "ann").status_code == 200
    superlink.answer = b""
    assert send(call, "bob", message_of(WORDS, 1, "letter"))[-1].status_code == 403
    assert send(call, "ann", message_of(WORDS, 0, "letter"))[-1].status_code == 200


def told_instead(superlink: SuperLink) -> str:
    """Return why there is no answer, as the run is told at once, and nothing else."""
    (head,) = superlink.asked
    (message,) = PushMessagesRequest.FromString(head.content).messages_list
    assert message.metadata.reply_to_message_id == "m"
    assert message.metadata.src_node_id == 0
    return message.error.reason.removeprefix("refused at the gate: ")


def contents_of(thing: Message | RecordDict) -> dict[str, bytes]:
    return {name: part.deflate() for name, part in get_all_nested_objects(thing).items()}


def send_other(
    call: Call, head: PushMessagesRequest, contents: dict[str, bytes], run: int = 7
) -> httpx.Response:
    """Send what stands under a head; return what the last part is told."""
    session = session_of(call(PUSH, "ann", head.SerializeToString()).content)
    told = [
        call(
            PUSH_OBJECT,
            "ann",
            PushObjectRequest(
                object_id=name, object_content=content, session_id=session, run_id=run
            ).SerializeToString(),
        )
        for name, content in contents.items()
    ]
    return told[-1]


def chunks_many_times() -> tuple[ObjectTree, dict[str, bytes]]:
    """Return an array that is a thousand times as large as what is sent of it."""
    array = Array(np.zeros(1000))
    parts = contents_of(RecordDict({"arrays": ArrayRecord({"a": array})}))
    bomb = parts[array.object_id].replace(b"[0]", b"[" + b"0, " * 1000 + b"0]")
    head, _, body = bomb.partition(b"\0")
    bomb = b" ".join([*head.split(b" ")[:2], str(len(body)).encode()]) + b"\0" + body
    (chunk,) = array.children
    tree = ObjectTree(object_id=get_object_id(bomb), children=[ObjectTree(object_id=chunk)])
    return tree, {chunk: parts[chunk], tree.object_id: bomb}


def another(way: str) -> tuple[ObjectTree, dict[str, bytes]]:
    """Return what is not what a head says that it is."""
    if way == "garbage":
        garbage = b"Message  9\0and so on"
        return ObjectTree(object_id=get_object_id(garbage)), {get_object_id(garbage): garbage}
    if way == "a thousand times its size":
        return chunks_many_times()
    thing = {
        "another message": message_of(WORDS, 0, "other"),
        "another node": message_of(WORDS, 1, "m"),
        "no message": WORDS,
    }[way]
    return get_object_tree(thing), contents_of(thing)


@pytest.mark.parametrize(
    "way",
    ["another message", "another node", "no message", "garbage", "a thousand times its size"],
)
def test_what_would_end_the_run_or_says_otherwise_than_its_head_is_no_answer(
    gate: Gate, call: Call, superlink: SuperLink, way: str
) -> None:
    """The head is for the SuperLink; what the run reads is within."""
    gate.limiter.limits = RateLimits(message_bytes=2**20)
    head = head_of(message_of(WORDS, 0, "m"), 0)
    tree, contents = another(way)
    head.message_object_trees[0].CopyFrom(tree)
    refused = send_other(call, head, contents)
    assert refused.status_code == 400
    assert ("more than" in refused.json()["detail"]) == (way == "a thousand times its size")
    assert told_instead(superlink) in refused.json()["detail"]
    # What is refused is gone: nobody is made to read it again.
    assert "not begun" in send_part(call, "ann", contents, "s").json()["detail"]


def send_part(call: Call, node: str, contents: dict[str, bytes], session: str) -> httpx.Response:
    name, content = next(iter(contents.items()))
    part = PushObjectRequest(object_id=name, object_content=content, session_id=session)
    return call(PUSH_OBJECT, node, part.SerializeToString())


def test_a_superlink_is_told_what_was_read_and_not_what_a_node_says_of_it(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    """With other children of a part, other runs or messages, it would refuse what others send."""
    gate.limiter.limits = RateLimits()
    message = message_of(WORDS, 0, "m")
    honest = head_of(message, 0)
    lying = PushMessagesRequest.FromString(honest.SerializeToString())
    lying.messages_list[0].metadata.message_id = WORDS.object_id
    lying.messages_list[0].metadata.run_id = 999
    tree = lying.message_object_trees[0]
    deepest = tree.children[0].children[0]
    deepest.children.add().CopyFrom(ObjectTree(object_id=tree.children[0].object_id))
    contents = contents_of(message)
    superlink.answer = PushMessagesResponse(
        objects_to_push=list(contents), session_id="theirs"
    ).SerializeToString()
    assert send_other(call, lying, contents, run=999).status_code == 200
    head, *parts = superlink.asked
    assert PushMessagesRequest.FromString(head.content) == honest
    told = [PushObjectRequest.FromString(part.content) for part in parts]
    assert {(part.run_id, part.object_id): part.object_content for part in told} == {
        (7, name): content for name, content in contents.items()
    }


def test_an_answer_that_the_superlink_forgot_is_begun_anew(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    gate.limiter.limits = RateLimits()
    receipt, parts = begin(call)
    superlink.answer, superlink.stores = receipt, False
    assert [call(PUSH_OBJECT, "ann", part).status_code for part in parts][-1] == 503
    superlink.stores = True
    assert call(PUSH_OBJECT, "ann", parts[-1]).status_code == 200
    paths = [request.url.path for request in superlink.asked]
    assert paths == [PUSH, PUSH_OBJECT, PUSH] + [PUSH_OBJECT] * len(parts)


def test_who_asks_again_is_answered_and_who_asked_before_is_not_waited_for(
    gate: Gate, superlink: SuperLink, tmp_path: Path
) -> None:
    """Its connection may be cut, and what is fetched for it would be lost."""
    gate.hold, gate.limiter.limits = 60.0, RateLimits()

    async def receive() -> MutableMapping[str, Any]:
        if first:
            first.pop()
            return {"type": "http.request", "body": b""}
        await asyncio.sleep(60)
        return {}

    first: list[int] = []

    async def twice() -> list[int]:
        headers = signed(tmp_path / "ann")
        first.append(1)
        before = asyncio.create_task(answered(gate, PULL, "POST", headers, receive))
        while len(superlink.asked) < 2:
            await asyncio.sleep(0.01)
        first.append(1)
        after = asyncio.create_task(answered(gate, PULL, "POST", headers, receive))
        told = await asyncio.wait_for(before, 5)
        message = PullMessagesResponse(messages_list=[{"metadata": {"message_id": "m"}}])
        superlink.later = [message.SerializeToString()]
        return [told, await asyncio.wait_for(after, 5)]

    assert asyncio.run(twice()) == [200, 200]


def test_a_part_is_what_it_says_it_is(call: Call, superlink: SuperLink) -> None:
    message = message_of(WORDS, 0, "m")
    session = session_of(call(PUSH, "ann", head_of(message, 0).SerializeToString()).content)
    part = parts_of(message, session)[0]
    for changes in ({"object_content": b"other"}, {"object_id": "other"}, {"session_id": "other"}):
        changed = PushObjectRequest()
        changed.CopyFrom(part)
        for key, value in changes.items():
            setattr(changed, key, value)
        assert call(PUSH_OBJECT, "ann", changed.SerializeToString()).status_code == 400
    assert call(PUSH_OBJECT, "bob", part.SerializeToString()).status_code == 400


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


def test_a_node_is_told_that_there_is_nothing_for_it_only_after_a_while(
    gate: Gate, call: Call, superlink: SuperLink
) -> None:
    """What comes meanwhile it gets at once: by itself it would look again after three seconds."""
    gate.hold, gate.limiter.limits = 0.3, RateLimits()
    began = time.monotonic()
    assert call(PULL, "ann").content == b""
    assert 0.2 < time.monotonic() - began < 20
    before = len(superlink.asked)
    assert before > 2

    gate.hold = 60.0
    message = PullMessagesResponse(messages_list=[{"metadata": {"message_id": "m"}}])
    superlink.later = [b"", b"", message.SerializeToString()]
    assert PullMessagesResponse.FromString(call(PULL, "ann").content) == message
    assert len(superlink.asked) == before + 3


def test_a_message_is_not_fetched_for_a_node_that_has_gone(
    gate: Gate, superlink: SuperLink, tmp_path: Path
) -> None:
    """It would be lost: a SuperLink gives each message once."""
    gate.hold = 60.0
    events = iter([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}])

    async def receive() -> MutableMapping[str, Any]:
        return next(events)

    asyncio.run(answered(gate, PULL, "POST", signed(tmp_path / "ann"), receive))
    assert len(superlink.asked) == 1


def test_the_gate_needs_nothing_that_models_need() -> None:
    """Nobody gets through while it starts anew."""
    say = "import sys, pudica.simulations.deployment.gate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
