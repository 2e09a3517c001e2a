"""How good the model is, classified by the devices or by the cloud, with noise and without."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, RecordDict

from clients import protocol
from models.packing import all_finite
from strategies.split.cloud import Cloud
from strategies.split.session import Session

PLAIN, NOISY = "plain", "noisy"
RELEASES = (PLAIN, NOISY)
BATCHES = 8  # of test features in a message, at least
BYTES = 4  # of the paper's float32 activations and int32 labels


def measure_whole(
    session: Session, cloud: Cloud, shared: Mapping[str, Array], part: str, epoch: int
) -> None:
    """Hand the back to the devices, let them measure the whole model, log the accuracies.

    Parameters
    ----------
    shared : mapping of str to Array
        The front, where the devices have not got it.
    part : {"validation", "test"}
    epoch : int
        Epochs that were trained.
    """
    content = session.request({"part": part, "epoch": epoch}, back=Array(cloud.packed()), **shared)
    requests = dict.fromkeys(session.exchanges.nodes, content)
    replies = session.exchanges.ask(protocol.WHOLE, requests, _counted)
    counts = {name: reply["num-examples"] for name, reply in replies.items()}
    for release in RELEASES:
        right = {name: reply[release] for name, reply in replies.items()}
        _log(session, part, release, "edge", epoch, right, counts)


def _counted(content: RecordDict) -> dict[str, float]:
    numbers = protocol.numbers_of(content)
    counts = {key: numbers[key] for key in (*RELEASES, "num-examples")}
    if not all(0 <= value <= counts["num-examples"] for value in counts.values()):
        raise ValueError(f"says that it got so many right: {counts}")
    return counts


class CloudClassification:
    """The cloud classifies the devices' test images; no test label leaves its device.

    Features come up, a few batches to a message; once the cloud has predicted a class for every
    image of a device, the device says how many were right.

    Parameters
    ----------
    session : Session
    cloud : Cloud
    shape : tuple of int
        Of one example's activation.
    release : {"noisy", "plain"}
        With the shield's noise; or without, to compare.
    """

    def __init__(
        self, session: Session, cloud: Cloud, shape: tuple[int, ...], release: str
    ) -> None:
        self.session = session
        self.cloud = cloud
        self.shape = shape
        self.release = release
        settings = session.settings
        self.each = settings.batch_size * max(settings.batches_per_message, BATCHES)
        names = session.exchanges.nodes
        self.predicted: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.right: dict[str, float] = {}

    def measure(self, shared: Mapping[str, Array], epoch: int) -> None:
        """Classify all test images and log the accuracies; arguments as of measure_whole."""
        first = {name: self._next(name, shared) for name in self.predicted}
        self.session.exchanges.converse(protocol.FEATURES, first, lambda c: c, self._answer)
        counts = {name: float(self.session.devices[name].test) for name in self.right}
        _log(self.session, "test", self.release, "cloud", epoch, self.right, counts)

    def _next(self, name: str, shared: Mapping[str, Array] | None = None) -> RecordDict:
        start, total = sum(map(len, self.predicted[name])), self.session.devices[name].test
        config: dict[str, protocol.Scalar] = {
            "start": start,
            "count": min(self.each, total - start),
            "noisy": int(self.release == NOISY),
        }
        if start < total or not total:
            return self.session.request(config, **(shared or {}))
        everything = Array(np.concatenate(self.predicted[name]))
        return self.session.request(config, predictions=everything)

    def _answer(self, name: str, content: RecordDict) -> RecordDict | None:
        try:
            numbers, arrays = protocol.numbers_of(content), protocol.arrays_of(content)
            if "right" in numbers:
                self.right[name] = self._checked(name, numbers["right"])
                return None
            features = self._features(name, arrays["features"])
        except (KeyError, ValueError) as error:
            self.session.exchanges.reject(name, f"{protocol.FEATURES}: {error}")
            return None
        if not len(features):
            return None
        self.predicted[name].append(self.cloud.classify(features))
        return self._next(name)

    def _checked(self, name: str, right: float) -> float:
        if not 0 <= right <= self.session.devices[name].test:
            raise ValueError(f"says that {right:g} were right")
        return right

    def _features(self, name: str, values: np.ndarray) -> torch.Tensor:
        left = self.session.devices[name].test - sum(map(len, self.predicted[name]))
        wanted = (min(self.each, left), *self.shape)
        features = torch.from_numpy(values).float()
        if tuple(features.shape) != (wanted if wanted[0] else (0,)) or not all_finite(features):
            raise ValueError(f"features of shape {values.shape}, or with NaN; wanted {wanted}")
        return features


def _log(
    session: Session,
    part: str,
    release: str,
    classified: str,
    epoch: int,
    right: Mapping[str, float],
    counts: Mapping[str, float],
) -> None:
    """Log each device's accuracy, and that over all images."""
    tags = {"release": release, "classified": classified}
    for name, count in counts.items():
        if count:
            session.log(part, "accuracy", right[name] / count, node=name, round=epoch, **tags)
    if total := sum(counts.values()):
        session.log(part, "accuracy", sum(right.values()) / total, round=epoch, **tags)


def log_bytes(session: Session, shape: tuple[int, ...], epoch: int) -> None:
    """Log each device's bytes in an epoch, as measured and by section V.C of paper 004.

    Up ``4·N·(p·q·m + 1)`` for N examples with their labels; down ``4`` for each step, the
    loss. What really has to come down is the gradient, as large as what went up.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.
    """
    for name, device in session.devices.items():
        up, down = session.costs.bytes(name)
        rows = {
            "bytes_up": up,
            "bytes_down": down,
            "formula_up": BYTES * device.train * (math.prod(shape) + 1),
            "formula_down": BYTES * session.batches(name),
        }
        for metric, value in rows.items():
            session.log("costs", metric, value, node=name, round=epoch)
