"""How good the model is, classified by the devices or by the cloud, with noise and without."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.shields.grid import IntegerGrid
from pudica.strategies.split.cloud import Cloud
from pudica.strategies.split.session import Session

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
    requests = dict.fromkeys(session.reporting(), content)
    total = {name: getattr(device, part) for name, device in session.devices.items()}
    replies = session.cohort.send_and_receive(
        protocol.WHOLE, requests, lambda n, c: _counted(c, total[n])
    )
    counts = {name: total[name] for name in replies}
    for release in RELEASES:
        right = {name: reply[release] for name, reply in replies.items()}
        _log(session, part, release, "edge", epoch, right, counts)


def _counted(content: RecordDict, total: int) -> dict[str, int]:
    """Return how many a device got right, of all images of a part that it said it has."""
    counts = {key: protocol.count_of(content, key, total) for key in (*RELEASES, "num-examples")}
    if counts["num-examples"] != total:
        raise ValueError(f"speaks of {counts['num-examples']} images, not of {total}")
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
    grid : Grid or None
        Of which it is whole steps.
    """

    def __init__(
        self,
        session: Session,
        cloud: Cloud,
        shape: tuple[int, ...],
        release: str,
        grid: IntegerGrid | None,
    ) -> None:
        self.session = session
        self.cloud = cloud
        self.shape = shape
        self.release = release
        self.grid = grid
        settings = session.settings
        self.each = settings.batch_size * max(settings.batches_per_message, BATCHES)
        names = session.reporting()
        self.predicted: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.right: dict[str, int] = {}

    def measure(self, shared: Mapping[str, Array], epoch: int) -> None:
        """Classify all test images and log the accuracies; arguments as of measure_whole."""
        first = {name: self._next(name, shared) for name in self.predicted}
        stream = self.session.cohort.stream(protocol.FEATURES, first, self._read)
        for name, reply in stream:
            if request := self._answer(name, reply):
                stream.send({name: request})
        counts = {name: self.session.devices[name].test for name in self.right}
        _log(self.session, "test", self.release, "cloud", epoch, self.right, counts)

    def _next(self, name: str, shared: Mapping[str, Array] | None = None) -> RecordDict:
        start, count = self._wanted(name)
        config: dict[str, protocol.Scalar] = {
            "start": start,
            "count": count,
            "noisy": int(self.release == NOISY),
        }
        if count or not start:
            return self.session.request(config, **(shared or {}))
        everything = Array(np.concatenate(self.predicted[name]))
        return self.session.request(config, predictions=everything)

    def _wanted(self, name: str) -> tuple[int, int]:
        """Return from which test image on a device is to send features, and of how many."""
        start = sum(map(len, self.predicted[name]))
        return start, min(self.each, self.session.devices[name].test - start)

    def _read(self, name: str, content: RecordDict) -> torch.Tensor | int:
        """Return the features that were asked for; once all are here, how many were right."""
        start, count = self._wanted(name)
        if start and not count:
            return protocol.count_of(content, "right", start)
        if not count:
            return torch.empty(0)
        wanted, wire = (count, *self.shape), self.session.settings.wire
        return protocol.from_wire(content, "features", wanted, wire, self.grid)

    def _answer(self, name: str, reply: torch.Tensor | int) -> RecordDict | None:
        if isinstance(reply, int):
            self.right[name] = reply
            return None
        if not len(reply):
            return None
        self.predicted[name].append(self.cloud.classify(reply))
        return self._next(name)


def _log(
    session: Session,
    part: str,
    release: str,
    classified: str,
    epoch: int,
    right: Mapping[str, int],
    counts: Mapping[str, int],
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
