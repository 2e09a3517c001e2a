"""How good the model is, classified by the devices or by the cloud, with noise and without."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import Array, RecordDict

from clients import protocol
from strategies.split.cloud import Cloud
from strategies.split.session import Session

PLAIN, NOISY = "plain", "noisy"
RELEASES = (PLAIN, NOISY)
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
    replies = session.exchanges.ask(protocol.WHOLE, requests, protocol.numbers_of)
    for release in RELEASES:
        right = {name: reply[release] for name, reply in replies.items()}
        counts = {name: reply["num-examples"] for name, reply in replies.items()}
        _log(session, part, release, "edge", epoch, right, counts)


def classify_in_cloud(
    session: Session, cloud: Cloud, shared: Mapping[str, Array], release: str, epoch: int
) -> None:
    """Let the cloud classify the devices' test images, and log how often it was right.

    Predictions go down and the next features come up in one message; no test label leaves its
    device.

    Parameters
    ----------
    release : {"noisy", "plain"}
        With the shield's noise; or without, to compare.
    """
    asked: dict[str, Array] = dict(shared)
    each = session.settings.batch_size * max(session.settings.batches_per_message, 8)
    starts = dict.fromkeys(session.exchanges.nodes, 0)
    right: dict[str, float] = dict.fromkeys(starts, 0.0)
    complete: set[str] = set()

    def request(name: str, **arrays: Array) -> RecordDict:
        count = min(each, session.devices[name].test - starts[name])
        config: dict[str, protocol.Scalar] = {
            "start": starts[name],
            "count": count,
            "guessed": max(0, starts[name] - each),
            "noisy": int(release == NOISY),
        }
        starts[name] += count
        return session.request(config, **arrays)

    def answer(name: str, said: tuple[torch.Tensor, float]) -> RecordDict | None:
        features, now_right = said
        right[name] += now_right
        if not len(features):
            complete.add(name)
            return None
        return request(name, predictions=Array(cloud.classify(features)))

    first = {name: request(name, **asked) for name in starts}
    session.exchanges.converse(protocol.FEATURES, first, _features, answer)
    counts = {name: float(session.devices[name].test) for name in starts if name in complete}
    _log(session, "test", release, "cloud", epoch, {n: right[n] for n in counts}, counts)


def _features(content: RecordDict) -> tuple[torch.Tensor, float]:
    features = torch.from_numpy(protocol.arrays_of(content)["features"]).float()
    if not torch.isfinite(features).all():
        raise ValueError("features with NaN or infinity")
    return features, protocol.numbers_of(content)["right"]


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
