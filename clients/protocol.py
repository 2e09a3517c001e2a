"""The contract between server and clients: what is asked, what is answered.

Every message holds at most an ``arrays`` record and a ``config`` (request) or ``metrics``
(reply) record. No message of any kind carries a label of a test set.

====================  ==============================================================
kind                  request → reply
====================  ==============================================================
``query.hello``       → which partition this node is, and the code it runs
``query.join``        assignment → shape, classes, sizes and fingerprint of the data
====================  ==============================================================

THEMIS. No message carries a model weight.

====================  ==============================================================
``train.local``       epoch → loss and validation accuracy after that epoch
``train.gradient``    μ, ρ → gradient of the model's loss on the noisy batches
``train.visit``       μ, ρ, Adam's moments → the same after local steps
``evaluate.noisy``    μ, ρ → accuracy on the noisy public validation set
``evaluate.density``  → mean and variance of the density the model implies, Eq. (1)
``evaluate.predict``  images → predicted classes
====================  ==============================================================

Split learning. The front is in no message unless the fronts are kept equal by averaging them
or handing one on, or it is the public one that all start from.

=====================  =============================================================
``train.smash``        gradient at the cut of the last batches → smashed data, labels
``train.front``        gradient at the cut → gradient of the front
``query.front``        gradient at the cut → the front, to be handed on
``evaluate.whole``     back → how many the whole model gets right here
``evaluate.features``  → features of some test images; predicted classes of all → how many right
=====================  =============================================================

DLMT. Images are in messages only where the cloud trains, and disguised as their owner says.

=====================  =============================================================
``query.statistics``   → mean and deviation of each channel of the disguised images
``query.images``       which → disguised images, labels
``train.round``        model → the same after local epochs
``evaluate.right``     model → how many it gets right here
``query.audit``        → how much the disguise shows, and how far attacks on it come
=====================  =============================================================

FaceMix. What is predicted is in no message; labels are in none.

=====================  =============================================================
``query.adopt``        first and last stage, normalisation →
``query.infer``        what the cloud made of a request → the next request's mixtures
``evaluate.counts``    → how often which answer was right, if the edge says so
``train.mixtures``     first and last stage → a training batch's mixtures
``train.outputs``      what the cloud made of them → loss, and gradient on it
``train.ends``         gradient on the mixtures → gradients of first and last stage
=====================  =============================================================

A deployed node answers anything with ``busy`` while another process of it is at work. Messages
carry the exchange's name as their group, by which one that comes twice is known again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType

HELLO = "query.hello"
JOIN = "query.join"
LOCAL = "train.local"
GRADIENT = "train.gradient"
VISIT = "train.visit"
NOISY = "evaluate.noisy"
DENSITY = "evaluate.density"
PREDICT = "evaluate.predict"

SMASH = "train.smash"
FRONT_GRADIENT = "train.front"
FRONT = "query.front"
WHOLE = "evaluate.whole"
FEATURES = "evaluate.features"

STATISTICS = "query.statistics"
IMAGES = "query.images"
ROUND = "train.round"
RIGHT = "evaluate.right"
AUDIT = "query.audit"

ADOPT = "query.adopt"
INFER = "query.infer"
COUNTS = "evaluate.counts"
MIXTURES = "train.mixtures"
OUTPUTS = "train.outputs"
ENDS = "train.ends"

BUSY = "busy"

Scalar = int | float | str | bool


def request(config: Mapping[str, Scalar], **arrays: Array) -> RecordDict:
    """Return the content of a request."""
    return _content("config", ConfigRecord(dict(config)), arrays)


def reply(metrics: Mapping[str, int | float], **arrays: np.ndarray) -> RecordDict:
    """Return the content of a numeric reply."""
    packed = {key: Array(np.ascontiguousarray(value)) for key, value in arrays.items()}
    return _content("metrics", MetricRecord(dict(metrics)), packed)


def statement(config: Mapping[str, Scalar]) -> RecordDict:
    """Return the content of a reply that has words in it."""
    return RecordDict({"config": ConfigRecord(dict(config))})


def busy() -> RecordDict:
    """Return the reply of a node that is still at work on what it was asked before."""
    return statement({BUSY: True})


def is_busy(content: RecordDict) -> bool:
    """Tell whether a reply says that, and nothing else."""
    return len(content) == 1 and words_of(content) == {BUSY: True}


def _content(
    key: str, record: ConfigRecord | MetricRecord, arrays: Mapping[str, Array]
) -> RecordDict:
    content = RecordDict({key: record})
    if arrays:
        content["arrays"] = ArrayRecord(dict(arrays))
    return content


def words_of(content: RecordDict) -> dict[str, Scalar]:
    """Return the settings of a request, or the words of a reply."""
    return dict(content.config_records.get("config", {}))  # type: ignore[arg-type]


def numbers_of(content: RecordDict) -> dict[str, float]:
    """Return the measurements in a reply.

    Raises
    ------
    ValueError
        If one of them is not a finite number.
    """
    records = content.metric_records.values()
    numbers = {k: v for record in records for k, v in record.items()}
    for key, value in numbers.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"'{key}' must be a finite number, is {value}")
    return {key: float(value) for key, value in numbers.items()}  # type: ignore[arg-type]


def arrays_of(content: RecordDict) -> dict[str, np.ndarray]:
    """Return all arrays of a message, decoded; nothing in them is ever unpickled.

    Raises
    ------
    ValueError
        An array that does not hold what it says it holds.
    """
    records: list[ArrayRecord] = list(content.array_records.values())
    return {key: _decoded(array) for record in records for key, array in record.items()}


def _decoded(array: Array) -> np.ndarray:
    """Return an array's values.

    ``Array.numpy`` does the same through ``np.load``, which compiles the header as Python
    source each time: with small arrays that costs more than everything else in an exchange.
    The header's end is known, since shape and type stand in the message too.
    """
    try:
        dtype = np.dtype(array.dtype)
    except TypeError as error:
        raise ValueError(f"'{array.dtype}' is no type of array") from error
    if dtype.kind not in "fiub":
        raise ValueError(f"arrays of type {array.dtype} are not accepted")
    size = math.prod(array.shape) * dtype.itemsize
    if array.stype != SType.NUMPY or min(array.shape, default=0) < 0 or size > len(array.data):
        raise ValueError(f"an array does not hold {array.shape} values of type {array.dtype}")
    values = np.frombuffer(array.data, dtype, offset=len(array.data) - size)
    return values.reshape(array.shape).copy()


def check_labels(labels: np.ndarray, count: int, classes: int) -> None:
    """See whether labels that came are so many, and of the classes that there are.

    Raises
    ------
    ValueError
        If they are not.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype}")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"a label outside 0 to {classes - 1}: a class that the cloud has not")


def batch_sizes(examples: int, size: int) -> list[int]:
    """Return the sizes of an epoch's batches, the same for device and cloud.

    All but the last are full. A single example that is left over would have no variance for
    batch norm: it takes one from the batch before.
    """
    sizes = [size] * (examples // size) + ([examples % size] if examples % size else [])
    if len(sizes) > 1 and sizes[-1] == 1 and size > 2:
        sizes[-2:] = [size - 1, 2]
    return sizes


def on_wire(tensor: torch.Tensor, kind: str) -> np.ndarray:
    """Return a tensor as it travels.

    Parameters
    ----------
    kind : {"float32", "float16"}
        What is too large for float16 is cut off: rounding is no use of the data, so it costs
        no privacy.
    """
    if kind == "float16":
        largest = torch.finfo(torch.float16).max
        tensor = tensor.clamp(-largest, largest).half()
    values: np.ndarray = tensor.cpu().numpy()
    return values


def payload_bytes(content: RecordDict) -> int:
    """Return the size of a message's content: arrays as serialised, scalars, and their keys.

    Flower's own ``count_bytes`` raises on an empty string, so it is not used.
    """
    array_records: list[ArrayRecord] = list(content.array_records.values())
    arrays = (item for record in array_records for item in record.items())
    records: list[Any] = [*content.config_records.values(), *content.metric_records.values()]
    scalars = (item for record in records for item in record.items())
    return sum(len(key) + len(array.data) for key, array in arrays) + sum(
        len(key) + (len(value) if isinstance(value, str) else 8) for key, value in scalars
    )


@cache
def code_fingerprint() -> str:
    """Return the hash of the code that a node runs: the packages models and clients.

    Flower can put other packages called ``models`` or ``clients`` on a worker's path; the
    organiser compares this with its own before anything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    root = Path(__file__).parent.parent
    for package in ("models", "clients"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
