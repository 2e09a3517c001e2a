"""A node's ClientApp: takes what its SuperNode has to be done, and does it with its own code.

Flower's SuperExec unpacks the code that the organiser has sent and runs it, in a process that
starts from nothing for each message. Here the ClientApp is the one that is installed on the node,
whatever was sent, and each message has a process that is forked from one in which everything is
imported already.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from signal import Signals

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from pudica.clients.app import app
from pudica.simulations.programs.calling import CLIENTAPP_READY, POLL_INTERVAL

NAME = "pudica-clientapp"
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
HEARTBEAT_SECONDS = 10.0
# What answers may need that `pudica.clients.app` imports only then: seconds, for each message.
PRELOADED_MODULES = ("pyarrow.dataset", "torch._dynamo", "torchvision")
POLL_SECONDS, ARRIVAL_SECONDS = 0.05, 60.0
# A process that has nothing in it but imports can be forked; that of a CUDA device could not.
FORK_CONTEXT = multiprocessing.get_context("fork")

log = logging.getLogger(NAME)


class TaskQueue:
    """What a SuperNode has to be done.

    Parameters
    ----------
    address : str
        Of the SuperNode's runtime, on this machine.
    secret : bytes
        By which it knows who may take what is to be done.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self.address = address
        signing = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])
        self._runtime = connect_runtime(address, signing)
        self._next_token: str | None = None
        self._lock = threading.Lock()

    def acquire(self) -> str | None:
        """Return the token of what is to be done next, or None.

        Raises
        ------
        httpx.HTTPError
            The SuperNode does not answer.
        """
        with self._lock:
            token, self._next_token = self._next_token or self._acquire_task(), None
            return token

    def has_next(self) -> bool:
        """Tell whether something else is to be done, while the message of a task is to come.

        A SuperNode takes in one message after the other. One whose run ends meanwhile it leaves as
        it is, task and all: what is not there when the next has come never will be.
        """
        with self._lock:
            self._next_token = self._next_token or self._acquire_task()
            return self._next_token is not None

    def _acquire_task(self) -> str | None:
        answer_message = self._runtime.AcquireTask(
            AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        )
        return answer_message.token or None

    def run_task(self, token: str) -> None:
        """Have a message answered in a process of its own, and say so if it dies of it."""
        with closing(connect_runtime(self.address, RuntimeTokenHttpInterceptor(token))) as there:
            with _send_heartbeats(there):  # a large message takes its time to arrive
                message, context = pull_message(there, self.has_next)
            began, done = time.monotonic(), FORK_CONTEXT.Event()
            process = FORK_CONTEXT.Process(
                target=answer_message,
                args=(self.address, token, message, context, os.getpid(), done),
            )
            process.start()
            while process.is_alive():
                _send_heartbeat(there)
                process.join(HEARTBEAT_SECONDS)
            if not done.is_set():
                died = Error(ErrorCode.CLIENT_APP_CRASHED, _describe_death(process))
                push_message(there, Message(died, reply_to=message), context)
            push_task_output(there, context, SubStatus.COMPLETED, "")
        kind, seconds = message.metadata.message_type, time.monotonic() - began
        log.info(
            "%s: %.1f s%s", kind, seconds, "" if done.is_set() else f"; {_describe_death(process)}"
        )


def pull_message(there: RuntimeHttpClient, has_next: Callable[[], bool]) -> tuple[Message, Context]:
    """Return the message that is to be answered, and where.

    As Flower's ``pull_task_input``, which gives up, or waits for a second, where the SuperNode has
    a task already and its message not yet.

    Raises
    ------
    RuntimeError
        The message does not come.
    """
    task = there.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(task.context)
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
    TaskIdentity.node_id = context.node_id
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not (found := there.PullMessages(PullAppMessagesRequest())).messages_list:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the message of a task did not come within {ARRIVAL_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    (tree,), place = found.message_object_trees, (Node(node_id=context.node_id), context.run_id)
    part = make_pull_object_fn_protobuf(there.PullObject, *place)

    def pull_object(name: str) -> bytes:
        try:
            return part(name)
        except ObjectUnavailableError:
            if has_next():
                raise RuntimeError("its message did not come to its end") from None
            raise

    message = pull_and_inflate_object_from_tree(
        tree,
        pull_object,
        make_confirm_message_received_fn_protobuf(there.ConfirmMessageReceived, *place),
        return_type=Message,
        initial_backoff=POLL_SECONDS,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context


def answer_message(
    address: str, token: str, message: Message, context: Context, parent: int, done: Event
) -> None:
    """Answer a message; what the ClientApp raises is an answer, too."""
    start_parent_process_monitor(parent)
    try:
        reply = app(message, context)
    except Exception as error:
        log.exception("%s", message.metadata.message_type)
        raised = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, raised), reply_to=message)
    signed = RuntimeTokenHttpInterceptor(token)
    with closing(connect_runtime(address, signed, persistent=True)) as there:
        push_message(there, reply, context)
    done.set()


def connect_runtime(
    address: str, *interceptors: ProtobufClientInterceptor, persistent: bool = False
) -> RuntimeHttpClient:
    """Return what speaks with a SuperNode's runtime, again and again if it is persistent."""
    known = RuntimeVersionHttpInterceptor(component_name=NAME)
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback
        root_certificates=None,
        interceptors=[known, *interceptors],
        retry_invoker=make_simple_http_retry_invoker() if persistent else None,
    )


@contextmanager
def _send_heartbeats(there: RuntimeHttpClient) -> Iterator[None]:
    """Give signs of life from a thread, which is gone at the end: with threads, none may fork."""
    signs = HeartbeatSender(lambda: _send_heartbeat(there))
    signs.start()
    try:
        yield
    finally:
        signs.stop()


def _send_heartbeat(there: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that its task is being done; return whether it has heard it."""
    try:
        there.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError as error:
        log.warning("the SuperNode does not hear that its task is being done: %s", error)
        return False
    return True


def _describe_death(process: BaseProcess) -> str:
    code = process.exitcode or 0
    how = f"killed by {Signals(-code).name}" if code < 0 else f"it ended with {code}"
    return f"the process of this node that was at work died: {how}"


def main() -> None:
    """Do what there is to do, until somebody ends it; ``argv[1]``: address, and secret's file."""
    settings = json.loads(sys.argv[1])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    tasks = TaskQueue(settings["address"], Path(settings["secret"]).read_bytes())
    pause = float(os.environ[POLL_INTERVAL])
    for name in PRELOADED_MODULES:
        import_module(name)
    log.info(CLIENTAPP_READY)
    while True:
        try:
            token = tasks.acquire()
            if token:
                tasks.run_task(token)
        except httpx.HTTPError as error:
            log.warning("the SuperNode is not there, or has given up a task: %s", error)
            token = None
        except Exception:
            # Whatever became of one task, the next is to be done.
            log.exception("a task could not be done")
            token = None
        if token is None:
            time.sleep(pause)
