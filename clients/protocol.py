"""The contract between server and clients: what is asked, what is answered.

Every message holds at most an ``arrays`` record and a ``config`` (request) or ``metrics``
(reply) record. No message of any kind carries a label of a test set.

A deployed node answers anything with ``busy`` while another process of it is at work. Messages
carry the exchange's name as their group, by which one that comes twice is known again. Other
groups, such as a round's number, say nothing of the kind.
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

from pudica.clients.shields.grid import IntegerGrid

# Each kind of message: request → reply.
HELLO = "query.hello"  # → which partition this node is, and the code it runs
JOIN = "query.join"  # assignment → shape, classes, sizes and fingerprint of the data, and the like

# THEMIS. No message carries a model weight.
LOCAL = "train.local"  # epoch → loss and validation accuracy after that epoch
GRADIENT = "train.gradient"  # μ, ρ → gradient of the model's loss on the noisy batches
VISIT = "train.visit"  # μ, ρ, Adam's moments → the same after local steps
NOISY = "evaluate.noisy"  # μ, ρ → accuracy on the noisy public validation set
DENSITY = "evaluate.density"  # → mean and variance of the density the model implies, Eq. (1)
PREDICT = "evaluate.predict"  # images → predicted classes

# Split learning. The front is in no message unless the fronts are kept equal by averaging them
# or handing one on, or it is the public one that all start from.
SMASH = "train.smash"  # gradient at the cut of the last batches → smashed data, labels
FRONT_GRADIENT = "train.front"  # gradient at the cut → gradient of the front
FRONT = "query.front"  # gradient at the cut → the front, to be handed on
WHOLE = "evaluate.whole"  # back → how many the whole model gets right (noisy under a guarantee)
FEATURES = "evaluate.features"  # → features of some test images; all predictions → how many right

# DLMT. Images are in messages only where the cloud trains, and disguised as their owner says.
STATISTICS = "query.statistics"  # → mean and deviation of each channel of the disguised images
IMAGES = "query.images"  # which → disguised images, labels
ROUND = "train.round"  # model → the same after local epochs
RIGHT = "evaluate.right"  # model → how many it gets right here
AUDIT = "query.audit"  # → how much the disguise shows, and how far attacks on it come

# FaceMix. Labels are in no message; where edges answer themselves, predictions are in none.
ADOPT = "query.adopt"  # first and last stage, normalisation →
INFER = "query.infer"  # what the cloud made of a request → the next request's mixtures
COUNTS = "evaluate.counts"  # → how often which answer was right, if the edge says so
MIXTURES = "train.mixtures"  # first and last stage → a training batch's mixtures
OUTPUTS = "train.outputs"  # what the cloud made of them → loss, and gradient on it
ENDS = "train.ends"  # gradient on the mixtures → gradients of first and last stage

BUSY = "busy"

LARGEST = float(np.finfo(np.float32).max)
"""Of a number in a reply: losses and the like are computed in float32."""
LARGEST_VALUE = 1e15
"""In an array: squares of 10⁸ such values can still be added up in float32."""
LONGEST, MOST_AXES = 2**31, 8
"""Axes are shorter, and fewer: Flower's messages can say no more."""
LARGEST_REPLY = 2**31
"""Bytes of all arrays by their names: one array may stand under several of them."""
TYPES = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
}
"""Of arrays in messages."""
HEAD = b"\x93NUMPY\x01\x00"
"""How ``np.save`` begins a file; the header's length follows in two bytes."""

GENERATOR = ("mu", "rho")
"""The arrays of a noise generator, as :class:`.Themis` has them."""
MOMENTS = "moments"
"""Adam's, beside those arrays: first moments of both, second moments of both."""

Scalar = int | float | str | bool | bytes


def request(config: Mapping[str, Scalar], **arrays: Array) -> RecordDict:
    """Return the content of a request."""
    return _content("config", ConfigRecord(dict(config)), arrays)


def reply(metrics: Mapping[str, int | float], **arrays: np.ndarray) -> RecordDict:
    """Return the content of a numeric reply."""
    packed = {key: Array(np.asarray(value, order="C")) for key, value in arrays.items()}
    return _content("metrics", MetricRecord(dict(metrics)), packed)


def statement(config: Mapping[str, Scalar]) -> RecordDict:
    """Return the content of a reply that has words in it."""
    return RecordDict({"config": ConfigRecord(dict(config))})


def generator_arrays(values: np.ndarray) -> ArrayRecord:
    """Return a noise generator's μ and ρ, (2, C, H, W), as its strategy's arrays."""
    named = zip(GENERATOR, values, strict=True)
    return ArrayRecord({name: Array(np.asarray(each, order="C")) for name, each in named})


def generator_reply(values: np.ndarray, metrics: Mapping[str, int | float]) -> RecordDict:
    """Return the content of a reply about a noise generator.

    ``values``, float32 of shape (2 or 6, C, H, W), are μ and ρ, or their gradients; then Adam's
    moments, which are no array of the strategy.
    """
    content = _content("metrics", MetricRecord(dict(metrics)), {})
    content["arrays"] = generator_arrays(values[:2])
    if len(values) > len(GENERATOR):
        content["config"] = ConfigRecord({MOMENTS: pack_moments(values)})
    return content


def pack_moments(values: np.ndarray) -> bytes:
    """Return the last four of (6, C, H, W) as bytes."""
    return np.ascontiguousarray(values[len(GENERATOR) :], "<f4").tobytes()


def unpack_moments(data: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return Adam's moments of μ and ρ, float32 (4, C, H, W) for images of a shape; ValueError."""
    wanted = (2 * len(GENERATOR), *shape)
    if not isinstance(data, bytes) or len(data) != 4 * math.prod(wanted):
        raise ValueError(f"moments that are no {wanted} of float32")
    return np.frombuffer(data, "<f4").reshape(wanted).astype(np.float32)


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
    """Return the measurements in a reply; ValueError if one of them is not a finite number."""
    return {name: number_of(content, name) for name in _metrics(content)}


def number_of(
    content: RecordDict, name: str, least: float = -LARGEST, most: float = LARGEST
) -> float:
    """Return one measurement in a reply; KeyError or ValueError unless it is within the bounds."""
    value = _metrics(content)[name]
    # Whole numbers of any size can be compared with floats, but not converted into them.
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(
            f"'{name}' must be a finite number from {least:g} to {most:g}, is {value!r}"
        )
    return float(value)


def count_of(content: RecordDict, name: str, most: int) -> int:
    """Return one count in a reply, a whole number from 0 on; errors as of :func:`whole`."""
    return whole(_metrics(content), name, 0, most)


def whole(values: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """Return one of some values that came, a whole number within bounds; KeyError or ValueError."""
    value = values[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"'{name}' must be a whole number {least} to {most}, is {value!r}")
    return value


def text(values: Mapping[str, Any], name: str) -> str:
    """Return one of some values that came, which must be a text; else KeyError or ValueError."""
    value = values[name]
    if type(value) is not str:
        raise ValueError(f"'{name}' must be a text, is {value!r}")
    return value


def _metrics(content: RecordDict) -> Mapping[str, Any]:
    return content.metric_records.get("metrics", {})


def arrays_of(content: RecordDict) -> dict[str, np.ndarray]:
    """Return all arrays of a message; nothing in them is ever unpickled.

    ValueError if one does not hold what it says it holds.
    """
    encoded = _encoded(content)
    if sum(len(array.data) for array in encoded.values()) > LARGEST_REPLY:
        raise ValueError(f"arrays of more than {LARGEST_REPLY} bytes")
    return {name: _decoded(array) for name, array in encoded.items()}


def array_of(
    content: RecordDict, name: str, shape: tuple[int, ...], dtype: str = "float32"
) -> np.ndarray:
    """Return one array of a message.

    KeyError or ValueError if it is missing, of another shape or type than was asked for, or holds
    values that are not finite, or absurd.
    """
    values = _decoded(_encoded(content)[name])
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(
            f"{name} of shape {values.shape} and type {values.dtype}, {shape} of {dtype} were "
            "asked for"
        )
    check_values(values, name)
    return values


def from_wire(
    content: RecordDict,
    name: str,
    shape: tuple[int, ...],
    kind: str,
    grid: IntegerGrid | None = None,
) -> torch.Tensor:
    """Return as float32 what :func:`on_wire` made of a tensor; errors as of :func:`array_of`."""
    if grid:
        return grid.to_values(array_of(content, name, shape, grid.dtype))
    return torch.from_numpy(array_of(content, name, shape, kind)).float()


def check_values(values: np.ndarray, name: str) -> None:
    """Raise ValueError if an array holds values that are not finite, or absurd."""
    if values.size and values.dtype.kind == "f":
        # Both are NaN if any value is.
        least, most = map(float, torch.from_numpy(values).aminmax())
        if not -LARGEST_VALUE <= least <= most <= LARGEST_VALUE:
            raise ValueError(f"{name} with NaN, infinity or absurd values")


def _encoded(content: RecordDict) -> Mapping[str, Array]:
    return content.array_records.get("arrays", {})


def _decoded(array: Array) -> np.ndarray:
    """Return an array's values.

    ``Array.numpy`` does the same through ``np.load``, which compiles the header as Python
    source each time: with small arrays that costs more than everything else in an exchange.
    The header is known, since shape and type stand in the message too.
    """
    if array.dtype not in TYPES:
        raise ValueError(f"arrays of type {array.dtype!r} are not accepted")
    dtype, shape, data = TYPES[array.dtype], tuple(array.shape), array.data
    if len(shape) > MOST_AXES or not all(type(n) is int and 0 <= n < LONGEST for n in shape):
        raise ValueError(f"an array of shape {shape[:MOST_AXES]}")
    start = len(data) - math.prod(shape) * dtype.itemsize
    if array.stype != SType.NUMPY or start < 0 or not _is_header(data[:start], dtype, shape):
        raise ValueError(f"an array does not hold {shape} values of type {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).copy()


def _is_header(header: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether that is what ``np.save`` writes before values of this type and shape."""
    first = len(HEAD) + 2
    said = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    return (
        header[: len(HEAD)] == HEAD
        and int.from_bytes(header[len(HEAD) : first], "little") == len(header) - first
        and header[first:].rstrip() == said.encode()
    )


def labels_of(
    content: RecordDict, name: str, count: int, classes: int, dtype: str = "int64"
) -> np.ndarray:
    """Return labels that came; KeyError or ValueError unless so many, of the classes there are."""
    labels = array_of(content, name, (count,), dtype)
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"a label outside 0 to {classes - 1}: a class that the cloud doesn't have")
    return labels


def batch_sizes(examples: int, size: int) -> list[int]:
    """Return the sizes of an epoch's batches, the same for device and cloud.

    All but the last are full. A single example that is left over would have no variance for
    batch norm: it takes one from the batch before.
    """
    sizes = [size] * (examples // size) + ([examples % size] if examples % size else [])
    if len(sizes) > 1 and sizes[-1] == 1 and size > 2:
        sizes[-2:] = [size - 1, 2]
    return sizes


def on_wire(tensor: torch.Tensor, kind: str, grid: IntegerGrid | None = None) -> np.ndarray:
    """Return a tensor as it travels: as integers if its values are whole steps of a grid.

    What is too large for a ``kind`` of float16 is cut off: rounding is no use of the data, so it
    costs no privacy.
    """
    if grid:
        return grid.to_integers(tensor)
    if kind == "float16":
        largest = torch.finfo(torch.float16).max
        tensor = tensor.clamp(-largest, largest).half()
    values: np.ndarray = tensor.cpu().numpy()
    return values


def payload_bytes(content: RecordDict) -> int:
    """Return the size of a message's content: arrays as serialised, scalars, and their keys.

    Flower's own ``count_bytes`` raises on an empty string.
    """
    array_records: list[ArrayRecord] = list(content.array_records.values())
    arrays = (item for record in array_records for item in record.items())
    records: list[Any] = [*content.config_records.values(), *content.metric_records.values()]
    scalars = (item for record in records for item in record.items())
    return sum(len(key) + len(array.data) for key, array in arrays) + sum(
        len(key) + (len(value) if isinstance(value, str | bytes) else 8) for key, value in scalars
    )


@cache
def code_fingerprint() -> str:
    """Return the hash of the code that a node runs: the packages models and clients.

    The organiser compares it with its own: a node may have another version installed.
    """
    digest = hashlib.blake2b(digest_size=16)
    root = Path(__file__).parent.parent
    for package in ("models", "clients"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
