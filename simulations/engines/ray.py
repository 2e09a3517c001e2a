"""Nodes on Ray actors: a node stays on its actor, and its model and data with it."""

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
from pudica.models.files import others_may_read
from pudica.simulations.engines.local import (
    PULL_SECONDS,
    LocalGrid,
    error_reply,
    run_config,
    server_context,
)
from pudica.simulations.engines.worker import Worker
from pudica.simulations.programs.calling import make_private_folder, write_ray_token
from pudica.strategies.core.experiment import ClientConfig, Experiment, RayConfig

PACKAGES = str(Path(__file__).parents[2])
ATTEMPTS = 3
# Below this a message goes straight from process to process, which is faster than through Ray's
# object store; from about twice this on the store is. Ray's own bound is a tenth of it.
STRAIGHT_BYTES = 1_000_000


@dataclass
class _Pending:
    identifier: str
    message: Message
    place: int
    attempts: int


class RayGrid(LocalGrid):
    """Hands messages straight to Ray actors.

    An actor that dies is replaced, and what its nodes had not answered is asked again; after
    three deaths on one message the node is a dropout.

    Parameters
    ----------
    app : ClientApp
        Must be importable on the workers.
    partitions : int
    config : dict
        The run configuration.
    workers : int
    num_cpus, num_gpus : float
        Of each worker.
    together : bool
        Hand a worker all messages of one push in a single call. Three times faster for small
        messages; their replies then come together too, so not for runs with a timeout.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        config: dict[str, str],
        workers: int,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        together: bool = True,
    ) -> None:
        super().__init__(partitions)
        self._together = together
        self._outbox: list[_Pending] = []
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
        self._arguments = (app, partitions, config)
        self.workers: list[Any] = [self._new_worker() for _ in range(min(workers, partitions))]
        self._pending: dict[Any, _Pending] = {}
        self._replies: dict[str, Message] = {}
        self._homes: dict[int, int] = {}

    def _new_worker(self) -> Any:
        return self._actor.remote(*self._arguments)

    def stop(self) -> None:
        """End the workers."""
        for worker in self.workers:
            ray.kill(worker)

    def _home(self, node: int) -> int:
        """Return the worker a node lives on: at first the one with the fewest nodes."""
        if node not in self._homes:
            load = Counter(self._homes.values())
            self._homes[node] = min(range(len(self.workers)), key=lambda place: load[place])
        return self._homes[node]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their nodes' workers and return their ids."""
        identifiers = list(super().push_messages(messages))
        outbox, self._outbox = self._outbox, []
        if self._together:
            for place in range(len(self.workers)):
                self._submit([pending for pending in outbox if pending.place == place])
        else:
            for pending in outbox:
                self._submit([pending])
        return identifiers

    def _hand(self, message: Message, identifier: str) -> None:
        place = self._home(message.metadata.dst_node_id)
        self._outbox.append(_Pending(identifier, message, place, 1))

    def _submit(self, letters: list[_Pending]) -> None:
        """Send letters to the worker they are all for."""
        if not letters:
            return
        arguments = [(p.message, self.partition[p.message.metadata.dst_node_id]) for p in letters]
        answer = self.workers[letters[0].place].answer.options(num_returns=len(letters))
        references = answer.remote(*arguments)
        if len(letters) == 1:
            references = [references]
        self._pending.update(zip(references, letters, strict=True))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait a moment for replies, and return the asked-for ones that are there."""
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
                continue  # asked again already, with the others of a dead worker
            try:
                reply = ray.get(reference)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                self._replace(self._pending[reference].place, error)
                continue
            self._replies[self._pending.pop(reference).identifier] = reply

    def _replace(self, place: int, error: Exception) -> None:
        """Put a new worker in a dead one's place, and ask its nodes again, one by one."""
        lost = [(r, p) for r, p in self._pending.items() if p.place == place]
        self.workers[place] = self._new_worker()
        for position, (reference, pending) in enumerate(lost):
            del self._pending[reference]
            # A worker answers in order: only the first of them can have killed it.
            pending.attempts += position == 0
            if pending.attempts <= ATTEMPTS:
                self._submit([pending])
            else:
                death = RuntimeError(f"its worker died {ATTEMPTS} times: {error}")
                self._replies[pending.identifier] = error_reply(pending.message, death)


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; leave nothing of ours behind.

    Raises
    ------
    RequestError
        If no cluster answers at the address, or it does not accept the token.
    """
    settings = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
    defaults = {name: os.environ.get(name, "0") for name in settings}
    with _environment(defaults), _join(config) if config.address else _start():
        yield


@contextmanager
def _start() -> Iterator[None]:
    """Start Ray on this machine, on loopback only and closed by a token of its own."""
    # Ray lets everybody write to its folders, sockets included. So they lie in a private one.
    folder = make_private_folder()
    bounds = {"RAY_max_direct_call_object_size": str(STRAIGHT_BYTES)}
    try:
        with _authentication({**write_ray_token(folder), "RAY_AUTH_TOKEN": None}):
            # Ray inherits our environment, which is seconds faster than having its agent make one.
            with _environment({**_worker_environment(), **bounds}), _loopback():
                # Without an address Ray would join whatever cluster it finds.
                _initialize("local", include_dashboard=False, _temp_dir=str(folder / "ray"))
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _join(config: RayConfig) -> Iterator[None]:
    """Join a cluster."""
    with _authentication(_token_variables(config.token)):
        try:
            _initialize(config.address, runtime_env={"env_vars": _worker_environment()})
        except (ConnectionError, ValueError, AuthenticationError) as error:
            raise RequestError(_explain_refusal(config, error)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _initialize(address: str | None, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _worker_environment() -> dict[str, str]:
    """Return the environment variables with which workers import what this process does."""
    places = {k: v for k, v in os.environ.items() if k in ("PUDICA_DATA", "PUDICA_CACHE")}
    # Our packages come first, whatever folders called `models` or `clients` lie in the working
    # directory. The user's own models come after them, from wherever this process has them.
    own = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {"PYTHONPATH": os.pathsep.join([PACKAGES, *own]), **places}


def _token_variables(path: Path | None) -> dict[str, str | None]:
    """Return the variables that hand Ray a cluster's token; without one, the user's own hold.

    Raises
    ------
    RequestError
        If there is no such file, or it is not for its owner alone.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise RequestError(f"ray.token: there is no file {path}")
    if others_may_read(path):
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
    """Tell whether a token is missing or wrong; Ray says so in a traceback within a message."""
    if error is None:
        return False
    refused = isinstance(error, AuthenticationError) or AuthenticationError.__name__ in str(error)
    return refused or _is_unauthenticated(error.__cause__)


@contextmanager
def _authentication(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of Ray's authentication inside.

    Ray reads mode and token once in a process, if it is not told to read them again.
    """
    try:
        with _environment(variables):
            _reload_authentication()
            yield
    finally:
        _reload_authentication()


def _reload_authentication() -> None:
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for this machine's address inside.

    The argument ``_node_ip_address`` does not: Ray puts an outward address in place of loopback's,
    but for this setting, which it reads from the environment when it is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables inside; None: unset."""
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


def worker_count(config: RayConfig, client: ClientConfig, partitions: int) -> int:
    """Return how many workers the cluster's resources and the clients' shares allow.

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
    """Run the experiment with its nodes on Ray."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = run_config(experiment, directory, "ray")
    partitions, client = len(experiment.names()), experiment.client
    with connected(experiment.ray):
        workers = worker_count(experiment.ray, client, partitions)
        grid = RayGrid(
            client_app,
            partitions,
            config,
            workers,
            client.num_cpus,
            client.num_gpus,
            together=client.timeout is None,
        )
        server_app(grid, server_context(config))
