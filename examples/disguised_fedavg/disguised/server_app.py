"""The server: Flower's own FedAvg, which knows nothing of disguises."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from disguised.task import network

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average what owners train."""
    torch.manual_seed(0)
    begun = ArrayRecord(network().state_dict())
    strategy = FedAvg(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    result = strategy.start(grid, begun, num_rounds=int(context.run_config["rounds"]))
    for number, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {number}: {dict(metrics)}")
