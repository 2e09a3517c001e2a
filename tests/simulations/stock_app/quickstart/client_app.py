"""quickstart: a Flower ClientApp."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, load_data
from quickstart.task import test as test_fn
from quickstart.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    place, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    loader, _ = load_data(place, count, context.run_config["loader.shuffle"])
    loss = train_fn(model, loader, context.run_config["local-epochs"], msg.content["config"]["lr"])
    metrics = {"train_loss": loss, "num-examples": len(loader.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    place, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    _, loader = load_data(place, count, False)
    metrics = {"eval_acc": test_fn(model, loader), "num-examples": len(loader.dataset)}
    assert torch.is_grad_enabled()
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
