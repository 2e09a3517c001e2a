"""A node's ClientApp: takes tasks from its SuperNode and runs them with the installed code.

Flower's SuperExec unpacks and runs the code that the organiser sent, in a new process for each
message. This ClientApp is the one installed on the node, whatever was sent, and handles each
message in a process forked from one that has already imported everything.
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
# Modules that `pudica.clients.app` imports only when needed, which would take seconds per message.
PRELOADED_MODULES = ("pyarrow.dataset", "torch._dynamo", "torchvision")
POLL_SECONDS, ARRIVAL_SECONDS = 0.05, 60.0
# A process that has only imported modules can be forked; one that has used CUDA can't.
FORK_CONTEXT = multiprocessing.get_context("fork")

log = logging.getLogger(NAME)


class TaskQueue:
    """The tasks of a SuperNode.

    Parameters
    ----------
    address : str
        Address of the SuperNode's runtime, on this machine.
    secret : bytes
        Secret that authorises taking tasks.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self.address = address
        signing = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])
        self._runtime = connect_runtime(address, signing)
        self._next_token: str | None = None
        self._lock = threading.Lock()

    def acquire(self) -> str | None:
        """Return the token of the next task, or None.

        Raises
        ------
        httpx.HTTPError
            If the SuperNode does not answer.
        """
        with self._lock:
            token, self._next_token = self._next_token or self._acquire_task(), None
            return token

    def has_next(self) -> bool:
        """Return whether there is another task, while the message of the current one is incomplete.

        A SuperNode receives one message after the other. If a run ends meanwhile, its message and
        task are left as they are: a message that is incomplete when the next one has arrived will
        never be complete.
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
        """Handle a task in a process of its own, and reply with an error if that process dies."""
        with closing(connect_runtime(self.address, RuntimeTokenHttpInterceptor(token))) as runtime:
            with _send_heartbeats(runtime):  # a large message takes a while to arrive
                message, context = pull_message(runtime, self.has_next)
            began, done = time.monotonic(), FORK_CONTEXT.Event()
            process = FORK_CONTEXT.Process(
                target=answer_message,
                args=(self.address, token, message, context, os.getpid(), done),
            )
            process.start()
            while process.is_alive():
                _send_heartbeat(runtime)
                process.join(HEARTBEAT_SECONDS)
            if not done.is_set():
                error = Error(ErrorCode.CLIENT_APP_CRASHED, _describe_death(process))
                push_message(runtime, Message(error, reply_to=message), context)
            push_task_output(runtime, context, SubStatus.COMPLETED, "")
        kind, seconds = message.metadata.message_type, time.monotonic() - began
        log.info(
            "%s: %.1f s%s", kind, seconds, "" if done.is_set() else f"; {_describe_death(process)}"
        )


def pull_message(
    runtime: RuntimeHttpClient, has_next: Callable[[], bool]
) -> tuple[Message, Context]:
    """Return the message and context of a task.

    Unlike Flower's ``pull_task_input``, it neither gives up nor waits for a second if the SuperNode
    has the task but not yet its message.

    Raises
    ------
    RuntimeError
        If the message does not arrive.
    """
    task = runtime.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(task.context)
    TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
    TaskIdentity.node_id = context.node_id
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not (response := runtime.PullMessages(PullAppMessagesRequest())).messages_list:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the message of a task did not arrive within {ARRIVAL_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    (tree,), owner = response.message_object_trees, (Node(node_id=context.node_id), context.run_id)
    pull = make_pull_object_fn_protobuf(runtime.PullObject, *owner)

    def pull_object(name: str) -> bytes:
        try:
            return pull(name)
        except ObjectUnavailableError:
            if has_next():
                raise RuntimeError("its message did not arrive completely") from None
            raise

    message = pull_and_inflate_object_from_tree(
        tree,
        pull_object,
        make_confirm_message_received_fn_protobuf(runtime.ConfirmMessageReceived, *owner),
        return_type=Message,
        initial_backoff=POLL_SECONDS,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context


def answer_message(
    address: str, token: str, message: Message, context: Context, parent: int, done: Event
) -> None:
    """Answer a message; if the ClientApp raises, the answer is an error."""
    start_parent_process_monitor(parent)
    try:
        reply = app(message, context)
    except Exception as error:
        log.exception("%s", message.metadata.message_type)
        raised = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, raised), reply_to=message)
    signed = RuntimeTokenHttpInterceptor(token)
    with closing(connect_runtime(address, signed, persistent=True)) as runtime:
        push_message(runtime, reply, context)
    done.set()


def connect_runtime(
    address: str, *interceptors: ProtobufClientInterceptor, persistent: bool = False
) -> RuntimeHttpClient:
    """Return a client of a SuperNode's runtime, which retries requests if it is persistent."""
    version = RuntimeVersionHttpInterceptor(component_name=NAME)
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback
        root_certificates=None,
        interceptors=[version, *interceptors],
        retry_invoker=make_simple_http_retry_invoker() if persistent else None,
    )


@contextmanager
def _send_heartbeats(runtime: RuntimeHttpClient) -> Iterator[None]:
    """Send heartbeats from a thread that ends on exit, since a process with threads can't fork."""
    sender = HeartbeatSender(lambda: _send_heartbeat(runtime))
    sender.start()
    try:
        yield
    finally:
        sender.stop()


def _send_heartbeat(runtime: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that its task is in progress; return whether that succeeded."""
    try:
        runtime.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError as error:
        log.warning("the SuperNode did not accept a heartbeat: %s", error)
        return False
    return True


def _describe_death(process: BaseProcess) -> str:
    code = process.exitcode or 0
    how = f"killed by {Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the process of this node that handled the message died: {how}"


def main() -> None:
    """Run tasks until stopped; ``argv[1]`` contains the address and the secret's file as JSON."""
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
            log.warning("the SuperNode does not answer, or has given up a task: %s", error)
            token = None
        except Exception:
            # A task that fails must not keep the next one from running.
            log.exception("a task failed")
            token = None
        if token is None:
            time.sleep(pause)
