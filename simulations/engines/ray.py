"""Nodes on Ray actors: each node, with its model and data, stays on the same actor."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from pudica.models.errors import RequestError
from pudica.models.files import is_accessible_by_others
from pudica.simulations.engines.local import (
    PULL_SECONDS,
    LocalGrid,
    build_error_reply,
    build_run_config,
    build_server_context,
)
from pudica.simulations.engines.worker import Worker
from pudica.simulations.programs.calling import make_private_folder, write_ray_token
from pudica.strategies.core.experiment import ClientConfig, Experiment, RayConfig

PACKAGES = str(Path(__file__).parents[2])
ATTEMPTS = 3
# Smaller messages go directly from process to process, which is faster than Ray's object store up
# to about twice this size. Ray's default is a tenth of it.
DIRECT_CALL_BYTES = 1_000_000


@dataclass
class _PendingMessage:
    identifier: str
    message: Message
    worker: int
    attempts: int


class RayGrid(LocalGrid):
    """A grid that passes messages directly to Ray actors.

    An actor that dies is replaced, and the messages that its nodes had not answered are sent again.
    A node drops out after its actor has died three times on the same message.

    Parameters
    ----------
    app : ClientApp
        The app, importable on the workers.
    partitions : int
    config : dict
        The run configuration.
    workers : int
    num_cpus, num_gpus : float
        Resources of each worker.
    together : bool
        Pass all messages of a push to a worker in a single call. This is three times faster for
        small messages, but the replies arrive together too, so runs with a timeout need False.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        config: dict[str, str],
        workers: int,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        batched: bool = True,
    ) -> None:
        super().__init__(partitions)
        self._batched = batched
        self._outbox: list[_PendingMessage] = []
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
        self._arguments = (app, partitions, config)
        self.workers: list[Any] = [self._new_worker() for _ in range(min(workers, partitions))]
        self._pending: dict[Any, _PendingMessage] = {}
        self._replies: dict[str, Message] = {}
        self._worker_of_node: dict[int, int] = {}

    def _new_worker(self) -> Any:
        return self._actor.remote(*self._arguments)

    def stop(self) -> None:
        """Stop the workers."""
        for worker in self.workers:
            ray.kill(worker)

    def _assign_worker(self, node: int) -> int:
        """Return the worker of a node; a new node goes to the worker with the fewest nodes."""
        if node not in self._worker_of_node:
            load = Counter(self._worker_of_node.values())
            self._worker_of_node[node] = min(
                range(len(self.workers)), key=lambda worker: load[worker]
            )
        return self._worker_of_node[node]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their nodes' workers and return the message ids."""
        identifiers = list(super().push_messages(messages))
        outbox, self._outbox = self._outbox, []
        if self._batched:
            for worker in range(len(self.workers)):
                self._submit([pending for pending in outbox if pending.worker == worker])
        else:
            for pending in outbox:
                self._submit([pending])
        return identifiers

    def _dispatch(self, message: Message, identifier: str) -> None:
        worker = self._assign_worker(message.metadata.dst_node_id)
        self._outbox.append(_PendingMessage(identifier, message, worker, 1))

    def _submit(self, requests: list[_PendingMessage]) -> None:
        """Send messages that are all for the same worker."""
        if not requests:
            return
        arguments = [(p.message, self.partition[p.message.metadata.dst_node_id]) for p in requests]
        answer = self.workers[requests[0].worker].answer.options(num_returns=len(requests))
        references = answer.remote(*arguments)
        if len(requests) == 1:
            references = [references]
        self._pending.update(zip(references, requests, strict=True))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait briefly for replies, and return those of the requested ones that are available."""
        wanted = list(message_ids)
        if self._pending and not any(i in self._replies for i in wanted):
            self._collect()
        return [self._replies.pop(i) for i in wanted if i in self._replies]

    def _collect(self) -> None:
        references = list(self._pending)
        ready, _ = ray.wait(references, num_returns=1, timeout=PULL_SECONDS)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            if reference not in self._pending:
                continue  # sent again already, with the others of a dead worker
            try:
                reply = ray.get(reference)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                self._replace_worker(self._pending[reference].worker, error)
                continue
            self._replies[self._pending.pop(reference).identifier] = reply

    def _replace_worker(self, worker: int, error: Exception) -> None:
        """Replace a dead worker, and send its unanswered messages again, one by one."""
        lost = [(r, p) for r, p in self._pending.items() if p.worker == worker]
        self.workers[worker] = self._new_worker()
        for position, (reference, pending) in enumerate(lost):
            del self._pending[reference]
            # A worker answers in order, so only the first message can have killed it.
            pending.attempts += position == 0
            if pending.attempts <= ATTEMPTS:
                self._submit([pending])
            else:
                death = RuntimeError(f"its worker died {ATTEMPTS} times: {error}")
                self._replies[pending.identifier] = build_error_reply(pending.message, death)


@contextmanager
def connect(config: RayConfig) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; clean up afterwards.

    Raises
    ------
    RequestError
        If no cluster answers at the address, or it does not accept the token.
    """
    settings = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
    defaults = {name: os.environ.get(name, "0") for name in settings}
    with _set_environment(defaults), _join_cluster(config) if config.address else _start_local():
        yield


@contextmanager
def _start_local() -> Iterator[None]:
    """Start Ray on this machine, on loopback only and protected by a token of its own."""
    # Ray makes its folders and sockets writable for everybody, so they go into a private folder.
    folder = make_private_folder()
    bounds = {"RAY_max_direct_call_object_size": str(DIRECT_CALL_BYTES)}
    try:
        with _set_authentication({**write_ray_token(folder), "RAY_AUTH_TOKEN": None}):
            # Ray inherits our environment, which is seconds faster than a runtime_env.
            with _set_environment({**_build_worker_environment(), **bounds}), _use_loopback():
                # Without an address, Ray would join any cluster it finds.
                _init_ray("local", include_dashboard=False, _temp_dir=str(folder / "ray"))
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _join_cluster(config: RayConfig) -> Iterator[None]:
    """Join a cluster."""
    with _set_authentication(_build_token_variables(config.token)):
        try:
            _init_ray(config.address, runtime_env={"env_vars": _build_worker_environment()})
        except (ConnectionError, ValueError, AuthenticationError) as error:
            raise RequestError(_explain_refusal(config, error)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _init_ray(address: str | None, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _build_worker_environment() -> dict[str, str]:
    """Return the environment variables that let workers import what this process can."""
    places = {k: v for k, v in os.environ.items() if k in ("PUDICA_DATA", "PUDICA_CACHE")}
    # Our packages come first, even if the working directory contains folders called `models` or
    # `clients`. The user's own modules follow, from the same places as in this process.
    own = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {"PYTHONPATH": os.pathsep.join([PACKAGES, *own]), **places}


def _build_token_variables(path: Path | None) -> dict[str, str | None]:
    """Return the variables that give Ray the cluster's token; without a path, change nothing.

    Raises
    ------
    RequestError
        If there is no such file, or others may read it.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise RequestError(f"ray.token: there is no file {path}")
    if is_accessible_by_others(path):
        raise RequestError(f"ray.token: {path} may be read by others: chmod 600 {path}")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": None}


def _explain_refusal(config: RayConfig, error: BaseException) -> str:
    """Return why a cluster could not be joined."""
    if not _is_unauthenticated(error):
        return f"ray.address: no Ray cluster at '{config.address}': {error}"
    if config.token:
        return f"ray.token: the cluster at '{config.address}' refuses the token in {config.token}"
    return (
        f"ray.address: the cluster at '{config.address}' wants its token: name the file that holds "
        "it in ray.token, or set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
    )


def _is_unauthenticated(error: BaseException | None) -> bool:
    """Return whether a token is missing or wrong; Ray says so in a traceback within a message."""
    if error is None:
        return False
    refused = isinstance(error, AuthenticationError) or AuthenticationError.__name__ in str(error)
    return refused or _is_unauthenticated(error.__cause__)


@contextmanager
def _set_authentication(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables of Ray's authentication within the context.

    Ray reads mode and token only once per process unless it is told to reload them.
    """
    try:
        with _set_environment(variables):
            _reload_authentication()
            yield
    finally:
        _reload_authentication()


def _reload_authentication() -> None:
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@contextmanager
def _use_loopback() -> Iterator[None]:
    """Make Ray use 127.0.0.1 as this machine's address within the context.

    The argument ``_node_ip_address`` is not enough: Ray replaces a loopback address by an external
    one unless this setting is off, which it reads from the environment when it is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _set_environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within the context; None unsets them."""
    before = {key: os.environ.get(key) for key in changes}
    _set_variables(changes)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def compute_worker_count(config: RayConfig, client: ClientConfig, partitions: int) -> int:
    """Return how many workers fit into the cluster's resources.

    Raises
    ------
    RequestError
        If not even one fits.
    """
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) / client.num_cpus)
    if client.num_gpus:
        room = min(room, int(resources.get("GPU", 0) / client.num_gpus + 1e-9))
    if room < 1 or (config.workers or 1) > room:
        raise RequestError(
            f"ray.workers: {config.workers or 1} workers of {client.num_cpus:g} CPUs and "
            f"{client.num_gpus:g} GPUs do not fit; Ray has {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs: lower client.num_cpus, client.num_gpus "
            "or ray.workers"
        )
    return min(config.workers or room, partitions)


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment with its nodes on Ray actors."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = build_run_config(experiment, directory, "ray")
    partitions, client = len(experiment.names()), experiment.client
    with connect(experiment.ray):
        workers = compute_worker_count(experiment.ray, client, partitions)
        grid = RayGrid(
            client_app,
            partitions,
            config,
            workers,
            client.num_cpus,
            client.num_gpus,
            batched=client.timeout is None,
        )
        server_app(grid, build_server_context(config))
