"""Replies that are no replies: every way, of each kind of message, in which one can be malformed.

What is well-formed and a lie, a plausible number that is wrong, is not among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from pudica.clients import protocol

Change = Callable[[RecordDict], object]
Ways = Iterator[tuple[str, Change]]
"""What is malformed, and what makes a reply so."""

LONG = "long " * 20_000
HUGE = 10**400


# ----------------------------------------------------------------- what a reply's numbers are


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds, which it never reaches."""

    most: int = 10**12
    least: int = -2

    def not_one(self, value: Any) -> list[Any]:
        """Return what it can't be."""
        numbers = [self.least, -(2**63), self.most, 2**63 - 1, HUGE, -HUGE, 0.5, -1.5, float(value)]
        return [*numbers, *NO_NUMBERS, [value], str(value), value == 1]

    def drawn(self, draw: Random) -> Any:
        """Return something that it can't be, by lot."""
        far = draw.getrandbits(draw.randrange(1, 400))
        return draw.choice(
            (self.least - far, self.most + far, draw.uniform(-9, 9), _nonsense(draw))
        )


@dataclass(frozen=True)
class Real:
    """A number within bounds."""

    least: float = -protocol.LARGEST
    most: float = protocol.LARGEST

    def not_one(self, value: Any) -> list[Any]:
        """Return what it can't be."""
        below, above = (math.nextafter(self.least, -math.inf), math.nextafter(self.most, math.inf))
        return [below, above, 1e39, -1e300, HUGE, -HUGE, *NO_NUMBERS, [value], str(value)]

    def drawn(self, draw: Random) -> Any:
        """Return something that it can't be, by lot."""
        times = 1 + 10 ** draw.uniform(-6, 200)
        low, high = self.least - max(1, abs(self.least)) * times, max(1, self.most) * times
        return draw.choice((low, high, _nonsense(draw), [draw.random()] * draw.randrange(9)))


@dataclass(frozen=True)
class Text:
    """A text."""

    others: tuple[str, ...] = ()

    def not_one(self, value: Any) -> list[Any]:
        """Return what it can't be."""
        return [3, 2.5, True, value.encode(), [value], [], None, *self.others]

    def drawn(self, draw: Random) -> Any:
        """Return something that it can't be, by lot."""
        number = draw.choice((draw.random(), draw.getrandbits(70), [_nonsense(draw)]))
        text = _nonsense(draw)
        return text if self.others and not re.fullmatch("[0-9]+x[0-9]+x[0-9]+", text) else number


class Moments:
    """Adam's moments as bytes: first of μ and ρ, then second."""

    def not_one(self, value: Any) -> list[Any]:
        """Return what they can't be."""
        moments = np.frombuffer(value, "<f4").reshape(4, -1)
        nan, negative = moments.copy(), moments.copy()
        nan[0, 0], negative[2:] = np.nan, -1 - moments[2:]
        wrong = [nan.tobytes(), negative.tobytes(), value[:-4], value + bytes(4), b""]
        return [*wrong, 3, 2.5, True, "moments", [value], None]

    def drawn(self, draw: Random) -> Any:
        """Return something that they can't be, by lot."""
        return draw.choice((draw.randbytes(draw.randrange(99)), _nonsense(draw), draw.random()))


def _nonsense(draw: Random) -> str:
    return "".join(draw.choices("0123456789x.-+e_ \t\n\0é٣", k=draw.randrange(40)))


NO_NUMBERS = [math.nan, math.inf, -math.inf, [], [0.0, 1.0], "", "nan", LONG, b"1", None, 1j]
SHAPES = (
    *("", "x", "1x8", "1x8x8x8", "0x8x8", "-1x8x8", "1x8x8.0", "axbxc", "1x8x8\n", " 1x8x8"),
    *("1x99999x99999", "1" * 5000 + "x8x8", "١x٨x٨", "1_0x8x8", "1e1x8x8", LONG),
)
COUNTS = dict.fromkeys(("train", "validation", "test"), Whole())
# What is read of each kind of reply.
NUMBERS: dict[str, dict[str, Whole | Real]] = {
    protocol.LOCAL: {"best": Real(0, 1), "finished": Whole(2)},
    protocol.GRADIENT: {"loss": Real()},
    protocol.VISIT: {"loss": Real()},
    protocol.NOISY: {"accuracy": Real(0, 1)},
    protocol.DENSITY: {"mean": Real(), "variance": Real()},
    protocol.SMASH: {"forward": Real(0, 1e9), "backward": Real(0, 1e9), "skipped": Whole(2)},
    protocol.FRONT_GRADIENT: {"backward": Real(0, 1e9)},
    protocol.WHOLE: dict.fromkeys(("plain", "noisy", "num-examples"), Whole()),
    protocol.FEATURES: {"right": Whole()},
    protocol.ROUND: {"loss": Real(0)},
    protocol.RIGHT: {"right": Whole()},
    protocol.ADOPT: {"requests": Whole()},
    protocol.INFER: {"done": Whole(2), "number": Whole()},
    protocol.OUTPUTS: {"loss": Real(0)},
}
WORDS: dict[str, dict[str, Whole | Text | Moments]] = {
    protocol.VISIT: {"moments": Moments()},
    protocol.HELLO: {"partition": Whole(), "code": Text()},
    protocol.JOIN: {
        "classes": Whole(),
        "attributes": Text(("", "label=3", "label:5-9\nlabel=3", LONG)),
        "shape": Text(SHAPES),
        "key": Text(),
        "fingerprint": Text(("", LONG, "0" * 32)),
        "kind": Text(("", "pixel", "pixels\n", LONG)),
        "low": Whole(2**62 + 1, -(2**62) - 1),
        "high": Whole(2**62 + 1, -(2**62) - 1),
        **COUNTS,
    },
}
# What may be left out, and what an audit may be without.
OPTIONAL = {"backward", "skipped", "kind", "low", "high"}


def ways(kind: str, content: RecordDict) -> list[tuple[str, Change]]:
    """Return every way to make a genuine reply malformed.

    Parameters
    ----------
    kind : str
        Of the message.
    content : RecordDict
        What was said.
    """
    found = [*_of_records(kind, content), *_of_numbers(kind, content), *_of_words(kind, content)]
    return [
        *found,
        *(way for name in read(kind, content) for way in _of_array(kind, content, name)),
    ]


def drawn(draw: Random, kind: str, content: RecordDict) -> tuple[str, Change]:
    """Return a way to make a genuine reply malformed that is drawn by lot, or two of them."""
    known = {"metrics": NUMBERS.get(kind, {}), "config": WORDS.get(kind, {})}
    fields = [
        (record, name, field)
        for record, of in known.items()
        for name, field in of.items()
        if name in content.get(record, ()) and name not in ("kind", "fingerprint")
    ]
    if "fingerprint" in content.get("config", ()):
        fields = []  # nothing else is read of a competition's data
    arrays = read(kind, content)
    if arrays and (not fields or draw.random() < 0.5):
        name = draw.choice(arrays)
        what, array = _drawn_array(draw, kind, content["arrays"][name])  # type: ignore[index, arg-type]
        return f"{name}: {what}", partial(_send, name, array)
    if fields and draw.random() < 0.7:
        record, name, field = draw.choice(fields)
        return next(iter(_of_value(record, name, [field.drawn(draw)])))
    (one, first), (other, second) = draw.sample(ways(kind, content), 2)

    def both(reply: RecordDict) -> None:
        first(reply)
        # What the second changes, the first may have taken away.
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            second(reply)

    return f"{one}, and {other}", both


def changed(content: RecordDict, change: Change) -> RecordDict:
    """Return a copy of a reply with a change."""
    copy = RecordDict({name: type(record)(dict(record)) for name, record in content.items()})  # type: ignore[call-arg, arg-type]
    change(copy)
    return copy


def read(kind: str, content: RecordDict) -> list[str]:
    """Return which arrays of a reply are read."""
    arrays = content.array_records.get("arrays", ArrayRecord())
    nothing = {protocol.SMASH: "smashed", protocol.FEATURES: "features"}.get(kind)
    # A device that was asked for nothing sends nothing, which nobody looks at.
    return [] if nothing in arrays and arrays[nothing].shape == (0,) else list(arrays)


# --------------------------------------------------------------------------- whole records


def _of_records(kind: str, content: RecordDict) -> Ways:
    if kind == protocol.AUDIT:
        # May say nothing at all, but nothing else.
        yield from ((f"a number called {name[:20]!r}", partial(_add, name)) for name in NO_FINDINGS)
        return
    used = [key for key in content if _is_used(kind, content, key)]
    yield "nothing", RecordDict.clear
    for key in used:
        yield f"no {key}", partial(_drop, key)
        yield f"{key} under another name", partial(_rename, key)
        yield f"{key} empty", lambda c, key=key: c[key].clear()
        for other in (MetricRecord({"a": 1}), ConfigRecord({"a": "b"}), ArrayRecord()):
            if type(other) is not type(content[key]):
                yield f"{key} of another kind", partial(_put, key, other)
    if kind == protocol.FEATURES and "arrays" in used:
        yield "how many were right, too early", lambda c: _say_only(c, right=1)
    if kind in (protocol.GRADIENT, protocol.VISIT, protocol.FRONT):
        yield "one array more", lambda c: c["arrays"].update(more=Array(np.ones(3, np.float32)))


NO_FINDINGS = (
    *("", "psnr ", "PSNR", "psnr/1", "minimum/1", "minimum/-1/found", "minimum/0/found", LONG),
    *("minimum/1/found/", "minimum/1_0/found", "minimum/٣/found", "nobody/1/found"),
    *("minimum/1.0/found", f"minimum/{'9' * 5000}/found", "minimum/1/nothing"),
)


def _is_used(kind: str, content: RecordDict, key: str) -> bool:
    if key == "metrics":
        return any(name in content[key] for name in NUMBERS.get(kind, {}))
    return bool(read(kind, content)) if key == "arrays" else key in ("config",) and kind in WORDS


def _add(name: str, content: RecordDict) -> None:
    content.setdefault("metrics", MetricRecord())[name] = 0.5  # type: ignore[index]


def _drop(key: str, content: RecordDict) -> None:
    del content[key]


def _say_only(content: RecordDict, **numbers: int) -> None:
    content.clear()
    content["metrics"] = MetricRecord(dict(numbers))  # type: ignore[arg-type]


def _rename(key: str, content: RecordDict) -> None:
    content[f"{key}s"] = content.pop(key)


def _put(key: str, record: Any, content: RecordDict) -> None:
    del content[key]
    content[key] = record


# ------------------------------------------------------------------------ numbers and words


def _of_numbers(kind: str, content: RecordDict) -> Ways:
    said = content.metric_records.get("metrics", MetricRecord())
    for name, value in said.items():
        if kind == protocol.AUDIT:
            yield from _of_value("metrics", name, Real().not_one(value))
        elif name in (fields := NUMBERS.get(kind, {})):
            yield from _of_value("metrics", name, fields[name].not_one(value))
            if name not in OPTIONAL or kind == protocol.FRONT_GRADIENT:
                yield from _without("metrics", name)
    if kind == protocol.LOCAL:
        best = max(content["arrays"]["accuracies"].numpy())  # type: ignore[index]
        if best > 0:
            yield from _of_value("metrics", "best", [float(best) / 2])


def _of_words(kind: str, content: RecordDict) -> Ways:
    said = content.config_records.get("config", ConfigRecord())
    fields = WORDS.get(kind, {})
    if "fingerprint" in said:  # of a competition's data; that is all that counts of them
        fields = {name: fields[name] for name in ("fingerprint",)}
    for name, value in said.items():
        if name in fields:
            yield from _of_value("config", name, fields[name].not_one(value))
            if name not in OPTIONAL:
                yield from _without("config", name)
    if kind == protocol.PREDICT:
        # There are none in a simulation.
        for name in ("signature", "public_key"):
            yield f"a {name} that is none", partial(_sign, name)


def _sign(name: str, content: RecordDict) -> None:
    content["config"] = ConfigRecord({name: 7})


def _of_value(record: str, name: str, values: list[Any]) -> Ways:
    for value in values:
        yield f"{name} = {_shown(value)}", partial(_say, record, name, value)


def _shown(value: Any) -> str:
    return "huge" if type(value) is int and abs(value) > 2**64 else f"{value!r:.40}"


def _say(record: str, name: str, value: Any, content: RecordDict) -> None:
    """Put a value of any type into a record, which would not take all of them."""
    content[record].__dict__["_data"][name] = value


def _without(record: str, name: str) -> Ways:
    yield f"no {name}", lambda c: c[record].pop(name)
    yield f"{name} under another name", lambda c: _renamed(c[record], name)


def _renamed(record: Any, name: str) -> None:
    record[f"{name}_"] = record.pop(name)


# ----------------------------------------------------------------------------------- arrays


def _of_array(kind: str, content: RecordDict, name: str) -> Ways:
    array = content["arrays"][name]  # type: ignore[index]
    assert isinstance(array, Array)
    if not (name.startswith("optimizer/") and len(content["arrays"]) == 2):
        yield from _without("arrays", name)
    values = array.numpy()
    for what, other in _encodings(array):
        yield f"{name}: {what}", partial(_send, name, other)
    for what, better in (*_types(values), *_shapes(kind, values), *_values(kind, name, values)):
        yield f"{name}: {what}", partial(_send, name, better)


def _send(name: str, array: Array | np.ndarray, content: RecordDict) -> None:
    content["arrays"][name] = Array(array) if isinstance(array, np.ndarray) else array  # type: ignore[index]


NO_TYPES: tuple[Any, ...] = (
    *("", "f4", "<f4", ">f4", ">i8", "object", "O", "complex64", "<U4", "str", "bool", "void"),
    *("float128", "datetime64[s]", "(2,3)f4", "f4,f4", "{'names'", "float32 ", "[", LONG),
    *(None, 4, float),
)
NO_LENGTHS: tuple[Any, ...] = (
    *((-1,), (-1, -1), (2.0,), ("3",), (None,), ((2,),), (True,), (2**31 - 1,) * 5, (2**63,)),
    *((0, 2**62), (0, 2**100), (0, 2**31 - 1, 2**31 - 1, 2**31 - 1), (1,) * 100, (HUGE,), (0.5,)),
    *((math.nan,), None, 7, "12", {}),
)


def _encodings(array: Array) -> Iterator[tuple[str, Array]]:
    """Yield arrays that do not hold what they say."""
    dtype, shape, stype, data = array.dtype, array.shape, array.stype, array.data
    for other in NO_TYPES:
        yield f"type {other!r:.20}", _lying(other, shape, stype, data)
    for wrong in {"float32", "int64", "uint8", "float64"} - {dtype}:
        yield f"said to be {wrong}", _lying(wrong, shape, stype, data)
    for lengths in NO_LENGTHS:
        if lengths != {} or shape:
            said = f"shape {_shown(lengths)}" if lengths != (HUGE,) else "a huge shape"
            yield said, _lying(dtype, lengths, stype, data)
    yield "longer than it is", _lying(dtype, (*shape, 3), stype, data)
    yield "one row more than it has", _lying(dtype, (1 + sum(shape), *shape[1:]), stype, data)
    for other in ("", "torch", "numpy", None, 3):
        yield f"kept as {other!r}", _lying(dtype, shape, other, data)
    datas: dict[str, Any] = {
        "no data": b"",
        "little data": data[:3],
        "a byte less": data[:-1],
        "a byte more": data + b"\0",
        "everything twice": data + data,
        "no magic": b"\x80" + data[1:],
        "pickled": b"\x80\x04\x95" + data[3:],
        "a header of version 2": data[:6] + b"\2" + data[7:],
        "a header that is too long": data[:8] + b"\xff\xff" + data[10:],
        "another header": data.replace(b"False", b"True ", 1),
        "a header of another type": data.replace(b"'descr': '", b"'descr': '>", 1),
        "values without a header": data[len(data) - len(data) // 2 :],
        "text as data": "0" * len(data),
        "nothing as data": None,
        "a number as data": 5,
    }
    for what, wrong in datas.items():
        yield what, _lying(dtype, shape, stype, wrong)


def _drawn_array(draw: Random, kind: str, array: Array) -> tuple[str, Array | np.ndarray]:
    """Return an array that is malformed in a way that is drawn by lot."""
    values, data = array.numpy(), array.data
    place = draw.randrange(len(data))
    header = data.index(b"}")
    match draw.randrange(6):
        case 0:
            return f"{place} bytes", _lying(array.dtype, array.shape, array.stype, data[:place])
        case 1:
            more = data[:place] + draw.randbytes(draw.randrange(1, 20)) + data[place:]
            return f"more bytes at {place}", _lying(array.dtype, array.shape, array.stype, more)
        case 2:
            at = draw.randrange(header)
            flipped = data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]
            return f"another byte {at}", _lying(array.dtype, array.shape, array.stype, flipped)
        case 3:
            lengths = [draw.randrange(-2, 9) for _ in range(draw.randrange(5))]
            if tuple(lengths) != array.shape:
                return f"said to be {lengths}", _lying(array.dtype, lengths, array.stype, data)
        case 4 if values.dtype.kind == "f" and values.size:
            wrong = values.copy()
            wrong.flat[draw.randrange(values.size)] = draw.choice((math.nan, math.inf, -math.inf))
            return "a value that is none", wrong
    lengths = [draw.randrange(4) for _ in range(draw.choice((0, 2, 3, 4)))]
    if tuple(lengths) != array.shape and kind != protocol.LOCAL:
        return f"of shape {lengths}", np.zeros(lengths, values.dtype)
    return "other bytes", _lying(array.dtype, array.shape, array.stype, draw.randbytes(len(data)))


def _lying(dtype: Any, shape: Any, stype: Any, data: Any) -> Array:
    """Return an array that may say anything of itself."""
    array = Array("float32", (), "numpy.ndarray", b"")
    array.dtype, array.shape, array.stype, array.data = dtype, shape, stype, data
    return array


def _types(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for other in ("float16", "float32", "float64", "int8", "int32", "int64", "uint64", "bool"):
        if values.dtype != other:
            with np.errstate(all="ignore"):
                yield f"in {other}", values.astype(other)
    yield "in the other byte order", values.astype(values.dtype.newbyteorder(">"))
    yield "in complex numbers", values.astype(np.complex64)
    yield "as texts", values.astype(str)


def _shapes(kind: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "one axis more", values[None]
    yield "other axes", np.zeros((3, *values.shape, 2), values.dtype)
    if values.ndim:
        yield "no axis", np.zeros((), values.dtype)
    if values.ndim > 1:
        yield "flat", values.reshape(-1)
    if kind == protocol.LOCAL:
        # Of epochs there may be fewer, but not more, than were asked for.
        yield "many more", np.zeros(1000, values.dtype)
    elif values.ndim:
        yield "none", values[:0] if len(values) else np.zeros(1, values.dtype)
        yield "one more", np.zeros((len(values) + 1, *values.shape[1:]), values.dtype)
        if len(values) > 1:
            yield "one less", values[1:]


OUTSIDE: dict[tuple[str, str], tuple[float, ...]] = {
    (protocol.LOCAL, "losses"): (-1.0, 1e39),
    (protocol.LOCAL, "accuracies"): (-0.1, 1.5),
    (protocol.PREDICT, "predictions"): (-1, 10**6, 2**62, -(2**62)),
    (protocol.SMASH, "labels"): (-1, 10**6, 2**31 - 1, -(2**31)),
    (protocol.IMAGES, "labels"): (-1, 10**6, 2**62, -(2**62)),
    (protocol.IMAGES, "images"): (-1, 32767, -32768),
    (protocol.STATISTICS, "normalisation"): (-0.5, 1.5),
    (protocol.COUNTS, "counts"): (-1, 10**6, 2**62, -(2**62)),
}


def _values(kind: str, name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    outside = list(OUTSIDE.get((kind, name), ()))
    if values.dtype.kind == "f":
        outside += [math.nan, math.inf, -math.inf]
    if values.dtype == np.float32:
        outside += [1e38, -1e38]
    for value in outside if values.size else ():
        for place in {0, values.size // 2, values.size - 1}:
            wrong = values.copy()
            wrong.flat[place] = value
            yield f"{value:g} at {place}", wrong
    if name.endswith("_sq") and values.size:
        yield "negative squares", -1 - values
    if name == "counts":
        # 2⁶² four times is nothing in 64 bits: the sums are right.
        yield "sums that wrap around", values + 2**62
    if kind == protocol.VISIT:
        yield "a step that is too long", values + 1e3
