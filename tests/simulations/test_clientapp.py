"""What does a node's work: its own code, in processes that may die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from pudica.clients import protocol
from pudica.simulations.deployment import clientapp
from pudica.simulations.deployment.clientapp import TaskQueue
from pudica.simulations.programs.calling import LOOPBACK, find_free_port

SECRET = b"the SuperNode's and its ClientApp's"
RUN, NODE, SERVER = 7, 3, 1


class SuperNode:
    """Flower's, but for the connection to a SuperLink."""

    def __init__(self) -> None:
        store = ObjectStoreFactory()
        states = NodeStateFactory(store)
        self.state, self.store = states.state(), store.store()
        self.state.set_node_id(NODE)
        # No zip, no code: whoever opened it would notice.
        run = Run.create_empty(RUN)
        run.fab_hash = self.state.store_fab(Fab("", b"from the organiser", {}))
        self.state.store_run(run)
        context = Context(RUN, NODE, {}, RecordDict(), {})
        self.state.set_run_series_context(run.series_id, context)
        config = uvicorn.Config(
            create_app(states, SECRET),
            host=LOOPBACK,
            port=find_free_port(),
            log_level="warning",
            ws="none",
        )
        self.address = f"{LOOPBACK}:{config.port}"
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> SuperNode:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def ask(self, kind: str) -> None:
        """Have a message to be answered."""
        message = Message(protocol.request({"run": "r"}), NODE, kind)
        _insert_message(message, self.state, self.store)
        assert self.state.create_task(TaskType.CLIENT_APP, RUN)

    def begin(self, kind: str) -> None:
        """Have a message to be answered of which nothing has come, and nothing will.

        So a SuperNode leaves one whose run ends while it is on its way.
        """
        message = Message(protocol.request({"run": "r"}), NODE, kind)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.store.preregister(RUN, get_object_tree(message))
            self.state.store_message(message)
        assert self.state.create_task(TaskType.CLIENT_APP, RUN)

    def answer(self) -> Message:
        """Return what came of it."""
        (reply,) = self.state.get_messages_legacy(is_reply=True)
        return reply


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperNode]:
    for name, value in {"_run_id": RUN, "_node_id": SERVER, "_task_id": 0}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    with SuperNode() as running:
        yield running


@pytest.fixture
def done(supernode: SuperNode) -> Callable[[str], Message]:
    """Return what a node answers to a message of some kind."""

    def answered(kind: str) -> Message:
        supernode.ask(kind)
        tasks = TaskQueue(supernode.address, SECRET)
        token = tasks.acquire()
        assert token
        tasks.run_task(token)
        assert tasks.acquire() is None
        return supernode.answer()

    return answered


def test_a_node_answers_with_its_own_code_whatever_was_sent(
    done: Callable[[str], Message],
) -> None:
    """What was sent can't even be opened here."""
    assert not done(protocol.HELLO).has_error()


def test_what_the_code_raises_is_an_answer(done: Callable[[str], Message]) -> None:
    error = done(protocol.LOCAL).error
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert error.reason.startswith("RuntimeError: this node has not joined the run")


def test_a_message_that_never_comes_keeps_nobody_waiting(supernode: SuperNode) -> None:
    tasks = TaskQueue(supernode.address, SECRET)
    supernode.begin(protocol.HELLO)
    token = tasks.acquire()
    assert token
    later = threading.Timer(0.5, supernode.ask, [protocol.HELLO])
    later.start()
    with pytest.raises(RuntimeError, match="did not arrive completely"):
        tasks.run_task(token)
    token = tasks.acquire()
    assert token
    tasks.run_task(token)
    assert tasks.acquire() is None
    assert not supernode.answer().has_error()


def test_a_process_that_is_killed_is_told_at_once(
    done: Callable[[str], Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower itself would wait for a minute for a sign of life."""
    me = os.getpid()

    def killed(*_: object) -> Message:
        assert os.getpid() != me
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(clientapp, "app", killed)
    error = done(protocol.HELLO).error
    assert (error.code, "SIGKILL" in error.reason) == (ErrorCode.CLIENT_APP_CRASHED, True)


def test_nobody_else_on_the_machine_takes_a_nodes_work(
    supernode: SuperNode, tmp_path: Path
) -> None:
    supernode.ask(protocol.HELLO)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        TaskQueue(supernode.address, b"something else").acquire()
    assert TaskQueue(supernode.address, SECRET).acquire()
