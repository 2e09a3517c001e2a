"""The cost of one exchange: the same tiny app in process, on Ray, and on Flower's simulation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pudica.simulations.benchmarks.measure import (
    Row,
    make_ratio_row,
    make_value_row,
    measure_seconds,
)
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import LocalGrid, build_server_context
from pudica.simulations.engines.ray import RayGrid

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


def measure_flower_round() -> float:
    """Return the median seconds of a round on Flower's own simulation, in a process of its own."""
    command = [sys.executable, "-m", "pudica.simulations.benchmarks.exchange"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return median(measured)


def measure_rows(repeats: int) -> list[Row]:
    """Measure exchanges on all engines; Ray must be connected."""
    build_server_context({})
    inprocess = InProcessGrid(echo, NODES, {})
    # Half a CPU each, so that the four workers of both grids fit; one pair is always idle.
    small, large = (
        RayGrid(echo, nodes, {}, workers=2, num_cpus=0.5) for nodes in (NODES, 10 * NODES)
    )
    here = [1000 * measure_round(inprocess, NODES) for _ in range(repeats)]
    on_ray, per_node = [], []
    for _ in range(repeats):
        on_ray.append(1000 * measure_round(small, NODES))
        per_node.append(1000 * measure_round(large, 10 * NODES) / 10)
    small.stop()
    large.stop()
    on_flower = [1000 * measure_flower_round() for _ in range(repeats)]
    return [
        make_value_row("round of 10 nodes, tiny message, Ray, 2 workers", "ms", 10.0, on_ray),
        make_ratio_row("the same against Flower's own simulation", "ms", 0.1, on_ray, on_flower),
        make_value_row("the same in process", "ms", 1.0, here),
        make_ratio_row("10 exchanges with 100 nodes against 10, Ray", "ms", 1.2, per_node, on_ray),
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
