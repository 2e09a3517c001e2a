"""A ClientApp whose nodes die, fail or sleep when they are told to."""

from __future__ import annotations

import os
import signal
import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Die, fail or sleep where the message says so; else say which process this is."""
    deed = message.content.config_records["config"].get(str(context.node_config["partition-id"]))
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "fail":
        raise ValueError("on purpose")
    if deed == "sleep":
        time.sleep(12)
    return Message(RecordDict({"m": MetricRecord({"process": os.getpid()})}), reply_to=message)
