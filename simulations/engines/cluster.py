"""Connecting to Ray: a local instance of our own, which nobody else can use, or a cluster."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from pudica.models.errors import RequestError
from pudica.models.files import is_accessible_by_others
from pudica.simulations.programs.calling import make_private_folder, write_ray_token
from pudica.strategies.core.experiment import RayConfig

# Smaller messages go directly from process to process, which is faster than Ray's object store up
# to about twice this size. Ray's default is a tenth of it.
DIRECT_CALL_BYTES = 1_000_000


@contextmanager
def connect(config: RayConfig, show_output: bool = False) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; clean up afterwards.

    ``show_output``: print here what the workers print.

    Raises
    ------
    RequestError
        If no cluster answers at the address, or it does not accept the token.
    """
    settings = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED")
    defaults = {name: os.environ.get(name, "0") for name in settings}
    connection = _join_cluster if config.address else _start_local
    with _set_environment(defaults), connection(config, show_output):
        yield


@contextmanager
def _start_local(_: RayConfig, show_output: bool) -> Iterator[None]:
    """Start Ray on this machine, on loopback only and protected by a token of its own."""
    # Ray makes its folders and sockets writable for everybody, so they go into a private folder.
    folder = make_private_folder()
    bounds = {"RAY_max_direct_call_object_size": str(DIRECT_CALL_BYTES)}
    try:
        with _set_authentication({**write_ray_token(folder), "RAY_AUTH_TOKEN": None}):
            # Ray inherits our environment, which is seconds faster than a runtime_env.
            with _set_environment({**_build_worker_environment(), **bounds}), _use_loopback():
                # Without an address, Ray would join any cluster it finds.
                ray.init(
                    "local",
                    logging_level=logging.ERROR,
                    include_dashboard=False,
                    log_to_driver=show_output,
                    _temp_dir=str(folder / "ray"),
                )
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _join_cluster(config: RayConfig, show_output: bool) -> Iterator[None]:
    with _set_authentication(_build_token_variables(config.token)):
        try:
            ray.init(
                config.address,
                logging_level=logging.ERROR,
                log_to_driver=show_output,
                runtime_env={"env_vars": _build_worker_environment()},
            )
        except (ConnectionError, ValueError, AuthenticationError) as error:
            raise RequestError(_explain_refusal(config, error)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _build_worker_environment() -> dict[str, str]:
    """Return the environment variables that let workers find what this process can."""
    places = {k: v for k, v in os.environ.items() if k in ("PUDICA_DATA", "PUDICA_CACHE")}
    own = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {"PYTHONPATH": os.pathsep.join(own), **places} if own else places


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
    before = {key: os.environ.pop(key, None) for key in changes}
    os.environ.update({key: value for key, value in changes.items() if value is not None})
    try:
        yield
    finally:
        for key in changes:
            os.environ.pop(key, None)
        os.environ.update({key: value for key, value in before.items() if value is not None})


def compute_worker_count(
    wanted: int | None, num_cpus: float, num_gpus: float, partitions: int
) -> int:
    """Return how many workers of these resources fit into the cluster, at most one a partition.

    Raises
    ------
    RequestError
        If not even one fits, or fewer than are wanted.
    """
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) / num_cpus)
    if num_gpus:
        room = min(room, int(resources.get("GPU", 0) / num_gpus + 1e-9))
    if room < 1 or (wanted or 1) > room:
        raise RequestError(
            f"workers: {wanted or 1} workers of {num_cpus:g} CPUs and {num_gpus:g} GPUs do not "
            f"fit; Ray has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs: "
            "lower num_cpus, num_gpus or workers"
        )
    return min(wanted or room, partitions)
