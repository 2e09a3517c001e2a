"""Any Flower app on Pudica's own engines: the rounds of Flower's simulation without its waiting."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict
from flwr.serverapp import ServerApp

from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.randomness import derive
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import LocalGrid, build_server_context, restore_identity
from pudica.simulations.engines.nodes import NodeOptions, use_global_seed
from pudica.strategies.core.experiment import RayConfig

ENGINES = ("inprocess", "ray")


def simulate(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    nodes: int,
    engine: str = "ray",
    num_cpus: float = 1,
    num_gpus: float = 0,
    workers: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Context:
    """Run a Flower app with simulated nodes.

    Both engines give the results of Flower's own simulation. Replies reach a strategy in the order
    of its messages, so its sums do not depend on which node was faster.

    Parameters
    ----------
    server_app : ServerApp
    client_app : ClientApp
        Its ``context.node_config`` has ``partition-id`` and ``num-partitions``; its
        ``context.state`` is kept from message to message, as in Flower.
    nodes : int
        Number of nodes.
    engine : {"ray", "inprocess"}
        Ray actors on this machine, between which the nodes are divided; or this process, one node
        after the other. A Ray that this process is connected to already is used as it is.
    num_cpus : float
        CPUs of a worker, and PyTorch threads of a node on either engine: sums depend on them.
    num_gpus : float
        GPUs of a worker; a fraction lets several share one.
    workers : int, optional
        Number of Ray actors; by default as many as fit, at most one a node.
    run_config : mapping, optional
        ``context.run_config`` of server and nodes; nested sections get keys with dots.
    seed : int, optional
        Seeds Python's, NumPy's and PyTorch's global generators for the ServerApp, and anew for
        every message of a node. An app that uses no other randomness has the same result on
        either engine, with any number of workers. By default nothing is seeded.

    Returns
    -------
    Context
        The ServerApp's, with what it has put into its ``state``.

    Raises
    ------
    RequestError
        If the request is wrong, or the workers can't load the ClientApp.

    Examples
    --------
    >>> simulate(server_app, client_app, nodes=20, run_config={"num-server-rounds": 3})
    """
    apps = {"server_app": (server_app, ServerApp), "client_app": (client_app, ClientApp)}
    for name, (app, kind) in apps.items():
        if not isinstance(app, kind):
            raise RequestError(
                f"{name}: a {type(app).__name__}; allowed: a Flower {kind.__name__} object"
            )
    if engine not in ENGINES:
        raise unknown_name_error("engine", str(engine), ENGINES)
    _check_number("nodes", nodes, 1)
    _check_number("workers", 1 if workers is None else workers, 1)
    _check_number("num_cpus", num_cpus, None, Real)
    _check_number("num_gpus", num_gpus, 0, Real)
    _check_number("seed", 0 if seed is None else seed, 0)
    try:
        config = flatten_dict(dict(run_config or {}))
    except ValueError as error:
        raise RequestError(
            f"run_config: {error} A Flower app's settings are int, float, bool or str."
        ) from error
    options = NodeOptions(
        run_id=secrets.randbits(62) + 1,
        seed=seed,
        threads=max(1, int(num_cpus)),
        log_errors=True,
    )
    with ExitStack() as stack:
        stack.enter_context(restore_identity())
        grid: LocalGrid
        if engine == "inprocess":
            grid = InProcessGrid(client_app, nodes, config, options, eager=True)
        else:
            resources = (num_cpus, num_gpus, workers)
            grid = stack.enter_context(_open_ray(client_app, nodes, config, options, *resources))
        if seed is not None:
            stack.enter_context(use_global_seed(derive(seed, "server")))
        context = build_server_context(config, options.run_id)
        server_app(grid=grid, context=context)
        return context


@contextmanager
def _open_ray(
    app: ClientApp,
    nodes: int,
    config: Mapping[str, bool | float | int | str],
    options: NodeOptions,
    num_cpus: float,
    num_gpus: float,
    workers: int | None,
) -> Iterator[LocalGrid]:
    """Open a grid on Ray; what a worker prints is printed here, as in Flower's simulation."""
    import ray

    from pudica.simulations.engines.cluster import compute_worker_count, connect
    from pudica.simulations.engines.ray import RayGrid

    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(connect(RayConfig(), show_output=True))
        count = compute_worker_count(workers, num_cpus, num_gpus, nodes)
        grid = RayGrid(
            app,
            nodes,
            config,
            count,
            num_cpus,
            num_gpus,
            batched=False,
            options=options,
            # Where this process looks for modules, in a way that holds in any directory.
            search_path=[os.path.abspath(p) if not p or os.path.exists(p) else p for p in sys.path],
        )
        stack.callback(grid.stop)
        grid.await_workers()
        yield grid


def _check_number(name: str, value: Any, least: int | None, kind: type = int) -> None:
    """Check that a number is of a kind and at least ``least``, or above 0 if that is None."""
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or (value <= 0 if least is None else value < least):
        what = "a whole number" if kind is int else "a number"
        bound = "above 0" if least is None else f"from {least} on"
        raise RequestError(f"{name}: {value!r}; allowed: {what} {bound}")
