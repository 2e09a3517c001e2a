"""Flower apps as users write them, each a ServerApp and a ClientApp made by one function.

A ServerApp leaves its final arrays in ``context.state["arrays"]``. Run as a program, this is
Flower's own simulation of some of them: ``python stock_apps.py NODES OUT.npz APP …``.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable, Sequence
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.logger import log
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedProx,
    Strategy,
)

Apps = tuple[ServerApp, ClientApp]
ROUNDS = 2


def wait_for_nodes(grid: Grid) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < 3:  # Flower's come one by one
        time.sleep(0.1)
    return nodes


def serve(make_strategy: Callable[[], Strategy]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        wait_for_nodes(grid)
        start = ArrayRecord([np.linspace(-1, 1, 6).reshape(2, 3), np.zeros(3)])
        result = make_strategy().start(grid, start, num_rounds=ROUNDS)
        context.state["arrays"] = result.arrays

    return app


def target_of(context: Context) -> float:
    return 1.0 + float(context.node_config["partition-id"])


def step(arrays: list[np.ndarray], target: float, mu: float = 0.0) -> list[np.ndarray]:
    """Three steps of gradient descent towards a node's own target."""
    moved = [array.copy() for array in arrays]
    for _ in range(3):
        moved = [
            w - 0.2 * (w - target) - mu * (w - w0) for w, w0 in zip(moved, arrays, strict=True)
        ]
    return moved


def reply(message: Message, arrays: list[np.ndarray], examples: int = 10) -> Message:
    metrics = MetricRecord({"num-examples": examples, "norm": float(np.linalg.norm(arrays[0]))})
    return Message(
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )


def training_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        mu = float(message.content["config"].get("proximal-mu", 0.0))
        return reply(message, step(arrays, target_of(context), mu), 10 + len(context.node_config))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        message.content["config"]["seen"] = True  # its own copy
        error = float(np.abs(message.content["arrays"].to_numpy_ndarrays()[0]).sum())
        metrics = MetricRecord({"error": error, "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def fedprox() -> Apps:
    return serve(lambda: FedProx(proximal_mu=0.1)), training_app()


def server_side_privacy() -> Apps:
    def strategy() -> Strategy:
        return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3)

    return serve(strategy), training_app()


def client_side_privacy() -> Apps:
    def strategy() -> Strategy:
        return DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.1, 1.0, 3)

    app = ClientApp()

    @app.train(mods=[fixedclipping_mod])
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        return reply(message, step(arrays, target_of(context)))

    return serve(strategy), app


def stateful() -> Apps:
    """Nodes count their calls; what a call that raises has counted is thrown away."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls = int(context.state.get("calls", ConfigRecord({"count": 0}))["count"]) + 1
        context.state["calls"] = ConfigRecord({"count": calls})
        arrays = [array + calls for array in message.content["arrays"].to_numpy_ndarrays()]
        return reply(message, arrays)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        context.state["calls"]["count"] += 100
        raise ValueError("and the count is as it was")

    return serve(FedAvg), app


def one_raises() -> Apps:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise ValueError("on purpose")
        return reply(message, step(message.content["arrays"].to_numpy_ndarrays(), 2.0))

    return serve(lambda: FedAvg(fraction_evaluate=0.0)), app


def handlers() -> Apps:
    """A protocol of somebody's own: messages of several types, several to one node at once."""
    server, client = ServerApp(), ClientApp()

    @client.query()
    def query(message: Message, context: Context) -> Message:
        total = float(context.state.get("m", MetricRecord({"total": 0.0}))["total"])
        return Message(RecordDict({"m": MetricRecord({"total": total})}), reply_to=message)

    @client.train("custom")
    def custom(message: Message, context: Context) -> Message:
        total = float(context.state.get("m", MetricRecord({"total": 1.0}))["total"])
        total = total * 3 + float(message.content["m"]["add"])
        context.state["m"] = MetricRecord({"total": total})
        return Message(RecordDict({"m": MetricRecord({"total": total})}), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = wait_for_nodes(grid)
        for number in range(3):
            content = RecordDict({"m": MetricRecord({"add": float(number)})})
            messages = [Message(content, node, "train.custom") for node in nodes]
            assert len(list(grid.send_and_receive(messages))) == len(nodes)
        pushed = list(grid.push_messages([Message(RecordDict(), n, "query") for n in nodes]))
        totals: dict[str, float] = {}
        while len(totals) < len(nodes):
            for answer in grid.pull_messages([i for i in pushed if i not in totals]):
                identifier = answer.metadata.reply_to_message_id
                totals[identifier] = float(answer.content["m"]["total"])
            time.sleep(0.01)
        echo = [Message(RecordDict({"c": ConfigRecord({"a": 1})}), nodes[0], "evaluate")]
        assert next(iter(grid.send_and_receive(echo))).content["c"]["a"] == 1
        log(INFO, "%s", totals)
        context.state["arrays"] = ArrayRecord([np.array([totals[i] for i in pushed])])

    return server, client


def drawing() -> Apps:
    """Nodes that use the global generators."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        import torch

        arrays = message.content["arrays"].to_numpy_ndarrays()
        noise = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return reply(message, [array + noise for array in arrays])

    return serve(lambda: FedAvg(fraction_evaluate=0.0)), app


def behaving() -> ClientApp:
    """A ClientApp for tests of how messages reach nodes, by what the message asks for."""
    app = ClientApp()

    @app.query("context")
    def tell(message: Message, context: Context) -> Message:
        assert message.metadata.dst_node_id == context.node_id
        assert message.metadata.run_id == context.run_id
        record = ConfigRecord({**context.node_config, **context.run_config})
        return Message(RecordDict({"is": record}), reply_to=message)

    @app.query("wrong")
    def wrong(message: Message, context: Context) -> Message | None:
        if context.node_config["partition-id"] == 0:
            raise ValueError("on purpose")
        if context.node_config["partition-id"] == 1:
            return None
        metadata = copy.deepcopy(message.metadata)
        metadata.__dict__["_message_id"] = "another"
        another = Message(content=message.content, metadata=metadata)
        return Message(RecordDict(), reply_to=another)

    @app.query("remember")
    def remember(message: Message, context: Context) -> Message:
        before = list(context.state.get("log", ConfigRecord({"log": []}))["log"])
        context.state["log"] = ConfigRecord({"log": [*before, int(message.content["say"]["n"])]})
        return Message(context.state, reply_to=message)

    @app.query("change")
    def change(message: Message, context: Context) -> Message:
        numbers = message.content["say"]["numbers"]
        seen = context.state.setdefault("seen", ConfigRecord({"numbers": []}))
        seen["numbers"] = [*seen["numbers"], *numbers]
        numbers.append(9)
        message.content["more"] = ConfigRecord()
        return Message(RecordDict({"seen": seen}), reply_to=message)

    @app.query("sleep")
    def sleep(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            time.sleep(float(message.content["say"]["seconds"]))
        return Message(RecordDict(), reply_to=message)

    return app


# ------------------------------------------------- what Flower has for older apps only


class Older(NumPyClient):
    def __init__(self, target: float) -> None:
        self.target = target

    def fit(self, parameters: list, config: dict) -> tuple[list, int, dict]:
        return step(parameters, self.target), 10, {}

    def evaluate(self, parameters: list, config: dict) -> tuple[float, int, dict]:
        return float(np.abs(parameters[0]).sum()), 10, {}


def older_client(context: Context) -> object:
    return Older(target_of(context)).to_client()


def older_strategy() -> LegacyFedAvg:
    start = ndarrays_to_parameters([np.linspace(-1, 1, 6).reshape(2, 3)])
    return LegacyFedAvg(min_available_clients=3, initial_parameters=start)


def secure_aggregation() -> Apps:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        legacy = LegacyContext(
            context=context, config=ServerConfig(num_rounds=ROUNDS), strategy=older_strategy()
        )
        workflow = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
        DefaultWorkflow(fit_workflow=workflow)(grid, legacy)
        context.state["arrays"] = legacy.state.array_records[MAIN_PARAMS_RECORD]

    return server, ClientApp(older_client, mods=[secaggplus_mod])


def server_fn() -> Apps:
    """Flower asks its nodes from several threads then."""

    def components(context: Context) -> ServerAppComponents:
        config = ServerConfig(num_rounds=ROUNDS)
        return ServerAppComponents(strategy=Keeping(context), config=config)

    return ServerApp(server_fn=components), ClientApp(older_client)


class Keeping(LegacyFedAvg):
    def __init__(self, context: Context) -> None:
        start = ndarrays_to_parameters([np.linspace(-1, 1, 6).reshape(2, 3)])
        super().__init__(min_available_clients=3, initial_parameters=start)
        self.context = context

    def aggregate_fit(self, server_round, results, failures):
        ordered = sorted(results, key=lambda pair: pair[1].parameters.tensors[0])
        parameters, metrics = super().aggregate_fit(server_round, ordered, failures)
        self.context.state["arrays"] = ArrayRecord(parameters_to_ndarrays(parameters))
        return parameters, metrics


# ------------------------------------------------------------------------ several apps

ALL = (
    "fedprox",
    "server_side_privacy",
    "client_side_privacy",
    "stateful",
    "one_raises",
    "handlers",
    "drawing",
    "secure_aggregation",
    "server_fn",
)


class Switching(ClientApp):
    """Is one of all apps after the other, as ``query.switch`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.apps = {name: globals()[name]()[1] for name in ALL}

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.switch":
            context.state = message.content
            return Message(RecordDict(), reply_to=message)
        return self.apps[str(context.state["app"]["name"])](message, context)


def one_after_the_other(names: Sequence[str] = ALL) -> Apps:
    """Several apps in one simulation, so that its nodes start only once."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        wait_for_nodes(grid)
        for name in names:
            content = RecordDict({"app": ConfigRecord({"name": name})})
            messages = [Message(content, node, "query.switch") for node in grid.get_node_ids()]
            assert not any(answer.has_error() for answer in grid.send_and_receive(messages))
            globals()[name]()[0](grid=grid, context=context)
            context.state[name] = context.state["arrays"]

    return server, Switching()


def simulate_with_flower(names: list[str], nodes: int, out: str) -> None:
    from flwr.simulation import run_simulation

    server, client = one_after_the_other(names)
    kept: dict[str, np.ndarray] = {}
    outer = ServerApp()

    @outer.main()
    def main(grid: Grid, context: Context) -> None:
        server(grid=grid, context=context)
        for name in names:
            arrays = context.state[name].to_numpy_ndarrays()
            kept[name] = np.concatenate([array.ravel() for array in arrays])

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(outer, client, nodes, backend_config=resources)  # type: ignore[arg-type]
    np.savez(out, **kept)


if __name__ == "__main__":
    simulate_with_flower(sys.argv[3:], int(sys.argv[1]), sys.argv[2])
