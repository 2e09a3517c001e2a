"""Rounds of a stock Flower app: `simulate` on Ray against Flower's own simulation."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from pudica.simulations.benchmarks.engines import run_module
from pudica.simulations.benchmarks.measure import Benchmark, Samples, measure_seconds
from pudica.simulations.simulation import simulate

NODES = 10
ROUNDS = 20
FLOWER_ROUNDS = 5

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take one step towards a node's own target."""
    (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    weights = weights - 0.1 * (weights - float(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, _: Context) -> Message:
    """Return the weights' norm."""
    (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"norm": float(np.linalg.norm(weights)), "num-examples": 1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def build_server(rounds: int, measured: list[float]) -> ServerApp:
    """Return a FedAvg app that notes how many milliseconds a round takes, after a first one."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        while len(list(grid.get_node_ids())) < NODES:
            time.sleep(0.1)
        start = ArrayRecord([np.zeros((10, 784), np.float32)])
        FedAvg().start(grid, start, num_rounds=1)
        seconds = measure_seconds(lambda: FedAvg().start(grid, start, num_rounds=rounds))
        measured.append(1000 * seconds / rounds)

    return server


def measure_ours() -> float:
    """Return the milliseconds of a round on our Ray grid."""
    measured: list[float] = []
    server = build_server(ROUNDS, measured)
    simulate(server, client, nodes=NODES, engine="ray", workers=2, num_cpus=1)
    return measured[0]


def _compare_with_flower(repeats: int) -> Samples:
    ours = [measure_ours() for _ in range(repeats)]
    return Samples(ours, [run_module(__name__) for _ in range(repeats)])


BENCHMARKS = [
    Benchmark(
        "apps-fedavg",
        "FedAvg round of 10 nodes, 31 kB, simulate on Ray / Flower's own simulation",
        "ms",
        0.1,
        _compare_with_flower,
        ray=True,
        quick=True,
    )
]


def main() -> None:
    """Time rounds on Flower's simulation and print them as JSON."""
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    measured: list[float] = []
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    server = build_server(FLOWER_ROUNDS, measured)
    run_simulation(server, client, NODES, backend_config=resources)  # type: ignore[arg-type]
    print(json.dumps(measured[0]))


if __name__ == "__main__":
    main()
