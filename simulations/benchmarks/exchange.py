"""The cost of one exchange: the same tiny app in process, on Ray, and on Flower's simulation."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from functools import cache
from statistics import median

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pudica.simulations.benchmarks.engines import run_module, start_ray_grid
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import LocalGrid, build_server_context

NODES = 10
ROUNDS = 50
FLOWER_ROUNDS = 5

echo = ClientApp()


@echo.query()
def send_back(message: Message, _: Context) -> Message:
    """Send the message back."""
    return Message(message.content, reply_to=message)


def run_round(grid: Grid, nodes: int) -> None:
    """Send a tiny message to every node and wait for all replies."""
    content = RecordDict({"config": ConfigRecord({"round": 1})})
    messages = [Message(content, node, "query") for node in list(grid.get_node_ids())[:nodes]]
    replies = list(grid.send_and_receive(messages))
    if len(replies) != nodes:
        raise RuntimeError(f"{len(replies)} of {nodes} nodes answered")


def measure_round(grid: LocalGrid, nodes: int) -> float:
    """Return the median seconds of a round, after a warm-up."""
    run_round(grid, nodes)
    return median(measure_seconds(lambda: run_round(grid, nodes)) for _ in range(ROUNDS))


@cache
def measure_flower_rounds(repeats: int) -> list[float]:
    """Return the milliseconds of rounds on Flower's own simulation, each in a new process."""
    return [1000 * median(run_module(__name__)) for _ in range(repeats)]


@cache
def measure_ray_rounds(repeats: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of rounds of 10 nodes, and of 100 nodes by ten, in turn."""
    build_server_context({})
    with ExitStack() as ends:
        # Half a CPU each, so that the four workers of both grids fit; one pair is always idle.
        small, large = (
            ends.enter_context(start_ray_grid(echo, nodes, {}, num_cpus=0.5))
            for nodes in (NODES, 10 * NODES)
        )
        on_ray, per_ten = [], []
        for _ in range(repeats):
            on_ray.append(1000 * measure_round(small, NODES))
            per_ten.append(1000 * measure_round(large, 10 * NODES) / 10)
    return on_ray, per_ten


def _measure_inprocess(repeats: int) -> Samples:
    build_server_context({})
    grid = InProcessGrid(echo, NODES, {})
    return Samples([1000 * measure_round(grid, NODES) for _ in range(repeats)])


def _measure_ray(repeats: int) -> Samples:
    return Samples(measure_ray_rounds(repeats)[0])


def _compare_ray_with_flower(repeats: int) -> Samples:
    return Samples(measure_ray_rounds(repeats)[0], measure_flower_rounds(repeats))


def _compare_ray_with_more_nodes(repeats: int) -> Samples:
    few, many = measure_ray_rounds(repeats)
    return Samples(many, few)


BENCHMARKS = [
    Benchmark(
        "exchange-inprocess-10",
        "round of 10 nodes, tiny message, in process",
        "ms",
        1.0,
        _measure_inprocess,
        quick=True,
    ),
    Benchmark(
        "exchange-ray-10",
        "round of 10 nodes, tiny message, Ray, 2 workers",
        "ms",
        10.0,
        _measure_ray,
        ray=True,
        quick=True,
    ),
    Benchmark(
        "exchange-ray-100",
        "10 exchanges with 100 nodes / with 10, Ray, 2 workers",
        "ms",
        1.2,
        _compare_ray_with_more_nodes,
        ray=True,
        quick=True,
    ),
    Benchmark(
        "exchange-flower",
        "round of 10 nodes, tiny message, Ray, 2 workers / Flower's own simulation",
        "ms",
        0.1,
        _compare_ray_with_flower,
        ray=True,
    ),
]


def main() -> None:
    """Time rounds on Flower's simulation and print them as JSON."""
    from flwr.simulation import run_simulation

    measured: list[float] = []
    server = ServerApp()

    @server.main()
    def rounds(grid: Grid, _: Context) -> None:
        while len(list(grid.get_node_ids())) < NODES:
            time.sleep(0.1)
        run_round(grid, NODES)
        measured.extend(
            measure_seconds(lambda: run_round(grid, NODES)) for _ in range(FLOWER_ROUNDS)
        )

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, echo, NODES, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
