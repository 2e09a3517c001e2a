"""A node as in Flower's quickstart; it counts how often it was asked in its state."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import fit, network, share

app = ClientApp()


def place(context: Context) -> tuple[int, int]:
    """Return which node this is, and how many there are."""
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's images."""
    before = context.state.metric_records.get("asked", MetricRecord({"times": 0}))
    context.state["asked"] = MetricRecord({"times": int(before["times"]) + 1})
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = share(*place(context), test=False)
    loss = fit(model, x, y, float(context.run_config["learning-rate"]))
    metrics = {"loss": loss, "num-examples": len(y), "asked": context.state["asked"]["times"]}
    arrays = ArrayRecord(model.state_dict())
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test on this node's images."""
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = share(*place(context), test=True)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    metrics = MetricRecord({"accuracy": float(right), "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
