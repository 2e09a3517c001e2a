"""What TensorBoard, MLflow and Weights & Biases have of a run, read back from their files."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = dict[tuple[str, int], list[float]]
"""By curve and step: every value that was written there, the last at the end."""

BLOCK = 32768  # of the files of Weights & Biases, which are LevelDB's logs


def read_tensorboard(directory: Path) -> Points:
    """Return what TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    points: Points = defaultdict(list)
    for curve in files.Tags()["scalars"]:
        for event in files.Scalars(curve):
            points[curve, event.step].append(event.value)
    return points


def read_mlflow(directory: Path) -> Points:
    """Return what MLflow has of the only run of this name in the database beside it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{directory.parent / 'mlflow.db'}")
    run = only_mlflow_run(directory)
    points: Points = defaultdict(list)
    for curve in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, curve):
            points[curve, point.step].append(point.value)
    return points


def only_mlflow_run(directory: Path) -> Any:
    """Return MLflow's run of a directory."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{directory.parent / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    name = f"attributes.run_name = '{directory.name}'"
    (run,) = client.search_runs(experiments, name)
    return run


def read_wandb(directory: Path) -> Points:
    """Return what Weights & Biases has of a run; it ignores a step that it has already."""
    points: Points = defaultdict(list)
    steps = set()
    for record in wandb_records(directory):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            step = record.history.step.num
            if step in steps:
                continue
            steps.add(step)
            for curve, value in items.items():
                if not curve.startswith("_") and curve != "round":
                    points[curve, int(items["round"])].append(float(json.loads(value)))
    return points


def wandb_records(directory: Path) -> Iterator[Any]:
    """Yield everything that Weights & Biases keeps of a run, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted((directory / "wandb").glob("offline-run-*/*.wandb")):
        for data in _read_leveldb(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            yield record


def _read_leveldb(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log whose first block begins with a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        if not kind:
            return
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
