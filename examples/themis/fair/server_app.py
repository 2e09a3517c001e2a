"""The organiser: trains the noise with the participants, and ranks them under it."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fair.task import NETWORKS, data
from pudica.strategies import Themis

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the competition."""
    config, (images, labels) = context.run_config, data()["test"].tensors
    present = len(NETWORKS) - int(config["dropouts"])
    strategy = Themis(
        update=config["update"],
        dropouts=config["dropouts"],
        min_nodes=present,
        record=config["record"] or None,
    )
    result = strategy.start(grid, num_rounds=int(config["epochs"]))
    accuracies = result.frame().query("metric == 'validation_accuracy'")
    print(accuracies.pivot(index="round", columns="node", values="value").round(3).to_string())
    board = strategy.leaderboard(grid, result.arrays, images, labels, draws=3)
    print(board.round(2).to_string())
