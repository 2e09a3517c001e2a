"""The cloud: owns the model, and serves it to edges whose features it sees mixed only."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mixed.task import data, stages
from pudica.clients.shields import Mixing
from pudica.strategies import FaceMix

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train behind the mixing, then serve."""
    config = context.run_config
    strategy = FaceMix(
        *stages(), mixing=Mixing(group=int(config["group"])), train=data()["train"], min_nodes=2
    )
    result = strategy.start(grid, num_rounds=int(config["epochs"]))
    served = strategy.serve(grid, result.arrays)
    print(served.frame().tail(6).to_string())
