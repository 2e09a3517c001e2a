"""How good the model is, classified by the devices or by the cloud, with noise and without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.strategies.split.cloud import Cloud
from pudica.strategies.split.devices import Devices

Part = Literal["validation", "test"]
Counts = dict[str, int]

PLAIN, NOISY = "plain", "noisy"
RELEASES = (PLAIN, NOISY)
BATCHES = 8  # of test features in a message, at least
BYTES = 4  # of the paper's float32 activations and int32 labels


def measure(
    devices: Devices, cloud: Cloud, shared: Mapping[str, Array], part: Part, epoch: int
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
    requests = measuring_requests(devices, cloud, shared, part, epoch)
    replies = devices.send_and_receive(protocol.WHOLE, requests, count_reader(devices, part))
    log_counts(devices, part, epoch, replies)


def measuring_requests(
    devices: Devices,
    cloud: Cloud,
    shared: Mapping[str, Array],
    part: Part,
    epoch: int,
    config: Mapping[str, Any] | None = None,
) -> dict[str, RecordDict]:
    """Return what lets devices measure the whole model; arguments as of :func:`measure`."""
    own = {**(config or {}), "part": part, "epoch": epoch}
    content = devices.request(own, back=Array(cloud.packed()), **shared)
    names = [name for name in devices.reporting() if devices.members[name].evaluates]
    return dict.fromkeys(names, content)


def count_reader(devices: Devices, part: Part) -> Callable[[str, RecordDict], Counts]:
    """Return what reads how many images of a part a device got right."""
    return lambda name, content: _read_counts(content, getattr(devices.members[name], part))


def log_counts(
    devices: Devices, part: Part, epoch: int, replies: Mapping[str, Counts]
) -> dict[str, float]:
    """Log the accuracies that devices measured; return those over all images, by release."""
    counts = {name: reply["num-examples"] for name, reply in replies.items()}
    found = {}
    for release in RELEASES:
        right = {name: reply[release] for name, reply in replies.items()}
        accuracy = _log(devices, part, release, "edge", epoch, right, counts)
        if accuracy is not None:
            found[release] = accuracy
    return found


def _read_counts(content: RecordDict, total: int) -> Counts:
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
    devices : Devices
    cloud : Cloud
    shape : tuple of int
        Of one example's activation.
    release : {"noisy", "plain"}
        With the shield's noise; or without, to compare.
    """

    def __init__(
        self,
        devices: Devices,
        cloud: Cloud,
        shape: tuple[int, ...],
        release: str,
    ) -> None:
        self.devices = devices
        self.cloud = cloud
        self.shape = shape
        self.release = release
        settings = devices.settings
        self.each = settings.batch_size * max(settings.batches_per_message, BATCHES)
        names = devices.reporting()
        self.predicted: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.right: dict[str, int] = {}

    def measure(self, shared: Mapping[str, Array], epoch: int) -> None:
        """Classify all test images and log the accuracies; arguments as of :func:`measure`."""
        first = {name: self._next(name, shared) for name in self.predicted}
        stream = self.devices.cohort.stream(protocol.FEATURES, first, self._read)
        for name, reply in stream:
            if request := self._answer(name, reply):
                stream.send({name: request})
        counts = {name: self.devices.members[name].test for name in self.right}
        _log(self.devices, "test", self.release, "cloud", epoch, self.right, counts)

    def _next(self, name: str, shared: Mapping[str, Array] | None = None) -> RecordDict:
        start, count = self._wanted(name)
        config: dict[str, protocol.Scalar] = {
            "start": start,
            "count": count,
            "noisy": int(self.release == NOISY),
        }
        if count or not start:
            return self.devices.request(config, **(shared or {}))
        everything = Array(np.concatenate(self.predicted[name]))
        return self.devices.request(config, predictions=everything)

    def _wanted(self, name: str) -> tuple[int, int]:
        """Return from which test image on a device is to send features, and of how many."""
        start = sum(map(len, self.predicted[name]))
        return start, min(self.each, self.devices.members[name].test - start)

    def _read(self, name: str, content: RecordDict) -> torch.Tensor | int:
        """Return the features that were asked for; once all are here, how many were right."""
        start, count = self._wanted(name)
        if start and not count:
            return protocol.count_of(content, "right", start)
        if not count:
            return torch.empty(0)
        wanted, wire = (count, *self.shape), self.devices.settings.wire
        grid = self.devices.members[name].grid if self.release == NOISY else None
        return protocol.from_wire(content, "features", wanted, wire, grid)

    def _answer(self, name: str, reply: torch.Tensor | int) -> RecordDict | None:
        if isinstance(reply, int):
            self.right[name] = reply
            return None
        if not len(reply):
            return None
        self.predicted[name].append(self.cloud.classify(reply))
        return self._next(name)


def _log(
    devices: Devices,
    part: str,
    release: str,
    classified: str,
    epoch: int,
    right: Mapping[str, int],
    counts: Mapping[str, int],
) -> float | None:
    """Log each device's accuracy, and that over all images; return the latter."""
    tags = {"release": release, "classified": classified}
    for name, count in counts.items():
        if count:
            devices.log(part, "accuracy", right[name] / count, node=name, round=epoch, **tags)
    if not (total := sum(counts.values())):
        return None
    accuracy = sum(right.values()) / total
    devices.log(part, "accuracy", accuracy, round=epoch, **tags)
    return accuracy


def log_bytes(devices: Devices, shape: tuple[int, ...], epoch: int) -> None:
    """Log each device's bytes in an epoch, as measured and by section V.C of paper 004.

    Up ``4·N·(p·q·m + 1)`` for N examples with their labels; down ``4`` for each step, the
    loss. What really has to come down is the gradient, as large as what went up.

    Parameters
    ----------
    shape : tuple of int
        Of one example's activation.
    """
    for name, device in devices.members.items():
        up, down = devices.costs.bytes(name)
        rows = {
            "bytes_up": up,
            "bytes_down": down,
            "formula_up": BYTES * device.train * (math.prod(shape) + 1),
            "formula_down": BYTES * devices.batches(name),
        }
        for metric, value in rows.items():
            devices.log("costs", metric, value, node=name, round=epoch)
