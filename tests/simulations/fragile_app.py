"""A ClientApp whose nodes count what they answer, and die, fail or sleep when they are told to."""

from __future__ import annotations

import os
import signal
import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SLEEP_SECONDS = {"sleep": 12.0, "nap": 1.0}


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Die, fail or sleep where the message says so; else say which process this is, and count."""
    deed = message.content.config_records["config"].get(str(context.node_config["partition-id"]))
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "fail":
        raise ValueError("on purpose")
    if deed in SLEEP_SECONDS:
        time.sleep(SLEEP_SECONDS[deed])
    before = int(context.state.metric_records["answers"]["count"]) if context.state else 0
    answers = MetricRecord({"count": before + 1})
    context.state["answers"] = answers
    content = RecordDict({"m": MetricRecord({"process": os.getpid(), **answers})})
    return Message(content, reply_to=message)
