"""How good the model is, classified by the devices or by the cloud, with noise and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.strategies.core.session import CLOUD

if TYPE_CHECKING:
    from pudica.strategies.split.state import SplitState

Part = Literal["validation", "test"]
Counts = dict[str, int]

PLAIN, NOISY = "plain", "noisy"
RELEASES = (PLAIN, NOISY)
BATCHES = 8  # of test features in a message, at least


def measure(strategy: SplitState, part: Part, epoch: int) -> None:
    """Let the devices measure the whole model after so many epochs, and log the accuracies."""
    requests, read = measuring_requests(strategy, part, epoch), count_reader(strategy, part)
    replies = strategy.cohort.send_and_receive(protocol.WHOLE, requests, read)
    log_counts(strategy, part, epoch, replies)


def measuring_requests(
    strategy: SplitState, part: Part, epoch: int, config: Mapping[str, Any] | None = None
) -> dict[str, RecordDict]:
    """Return what hands devices the back, and the front if they have not got it, to measure."""
    devices, back = strategy.devices, Array(strategy.cloud.packed())
    own = {**(config or {}), "part": part, "epoch": epoch}
    content = devices.request(own, back=back, **strategy.fronts.shared())
    names = [name for name in devices.reporting() if devices.members[name].evaluates]
    return dict.fromkeys(names, content)


def count_reader(strategy: SplitState, part: Part) -> Callable[[str, RecordDict], Counts]:
    """Return what reads how many images a device got right, of all that it said it has."""

    def read(name: str, content: RecordDict) -> Counts:
        total = getattr(strategy.devices.members[name], part)
        keys = (*RELEASES, "num-examples")
        counts = {key: protocol.count_of(content, key, total) for key in keys}
        if counts["num-examples"] != total:
            raise ValueError(f"speaks of {counts['num-examples']} images, not of {total}")
        return counts

    return read


def log_counts(
    strategy: SplitState, part: Part, epoch: int, replies: Mapping[str, Counts]
) -> dict[str, float]:
    """Log the accuracies that devices measured; return those over all images, by release."""
    counts = {name: reply["num-examples"] for name, reply in replies.items()}
    found = {}
    for release in RELEASES:
        correct = {name: reply[release] for name, reply in replies.items()}
        tags = {"round": epoch, "release": release, "classified": "edge"}
        accuracy = _log_accuracies(strategy, part, correct, counts, tags)
        if accuracy is not None:
            found[release] = accuracy
    return found


class CloudClassification:
    """The cloud classifies the devices' test images; no test label leaves its device.

    Features come up, a few batches to a message; once the cloud has predicted a class for every
    image of a device, the device says how many were right.

    Parameters
    ----------
    release : {"noisy", "plain"}
        With the shield's noise; or without, to compare.
    """

    def __init__(self, strategy: SplitState, release: str) -> None:
        self.strategy = strategy
        self.devices = strategy.devices
        self.release = release
        settings = strategy.settings
        self.each = settings.batch_size * max(settings.batches_per_message, BATCHES)
        names = self.devices.reporting()
        self.predicted: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def measure(self, epoch: int) -> dict[str, float]:
        """Classify all test images, log the accuracies, and return that of each device."""
        shared, correct = self.strategy.fronts.shared(), {}
        first = {name: self._request(name, shared) for name in self.predicted}
        stream = self.strategy.cohort.stream(protocol.FEATURES, first, self._read)
        for name, reply in stream:
            if isinstance(reply, int):
                correct[name] = reply
            elif len(reply):
                self.predicted[name].append(self.strategy.cloud.classify(reply))
                stream.send({name: self._request(name)})
        counts = {name: self.devices.members[name].test for name in correct}
        tags = {"round": epoch, "release": self.release, "classified": "cloud"}
        _log_accuracies(self.strategy, "test", correct, counts, tags)
        return {name: correct[name] / count for name, count in counts.items()}

    def _request(self, name: str, shared: Mapping[str, Array] | None = None) -> RecordDict:
        start, count = self._wanted(name)
        noisy = int(self.release == NOISY)
        config: dict[str, protocol.Scalar] = {"start": start, "count": count, "noisy": noisy}
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
        wanted, wire = (count, *self.strategy.activation), self.strategy.settings.wire
        grid = self.devices.members[name].grid if self.release == NOISY else None
        return protocol.from_wire(content, "features", wanted, wire, grid)


def _log_accuracies(
    strategy: SplitState,
    part: Part,
    correct: Mapping[str, int],
    counts: Mapping[str, int],
    tags: Mapping[str, Any],
) -> float | None:
    """Log each device's accuracy, and that over all images; return the latter."""
    for name, count in counts.items():
        if count:
            strategy.log(part, "accuracy", correct[name] / count, name, **tags)
    if not (total := sum(counts.values())):
        return None
    accuracy = sum(correct.values()) / total
    strategy.log(part, "accuracy", accuracy, CLOUD, **tags)
    return accuracy
