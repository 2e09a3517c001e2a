"""The cloud: trains the back on what left the devices, which it sees a single time."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from cutting.task import back, data, front
from pudica.strategies import SplitLearning

app = ServerApp()


def central(_: int, arrays: ArrayRecord) -> MetricRecord:
    """Return the accuracy on test images that the cloud holds, without noise."""
    head, (images, labels) = back(), data()["test"].tensors
    weights = arrays.to_torch_state_dict()
    head.load_state_dict({name.removeprefix("back."): value for name, value in weights.items()})
    right = head(front()(images)).argmax(1) == labels
    return MetricRecord({"test-accuracy": float(right.float().mean())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Collect the releases, train on them, measure."""
    strategy = SplitLearning(
        front(), back(), fronts="frozen", release="once", fit="means", min_nodes=3, seed=0
    )
    epochs = int(context.run_config["epochs"])
    result = strategy.start(grid, num_rounds=epochs, evaluate_fn=central)
    print(f"ε = {context.run_config['epsilon']} for each image, against whoever sees everything")
    print(result.evaluate_metrics_serverapp)
