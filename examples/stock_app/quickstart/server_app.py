"""The server as in Flower's quickstart."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import network

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg."""
    config = context.run_config
    torch.manual_seed(0)
    begun = ArrayRecord(network().state_dict())
    strategy = FedAvg(fraction_train=float(config["fraction-train"]))
    result = strategy.start(grid, begun, num_rounds=int(config["num-server-rounds"]))
    for number, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {number}: accuracy {metrics['accuracy']:.4f}")
    print("asked", result.train_metrics_clientapp[int(config["num-server-rounds"])]["asked"])
