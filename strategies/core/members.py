"""What nodes say of their data when they join."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self, get_args

from pudica.clients import protocol
from pudica.clients.shields.disguises import Span
from pudica.clients.shields.disguises.steps import Kind
from pudica.models.printable import quote

MOST_IMAGES, MOST_CLASSES = 10**9, 10**6
MOST_VALUES = 10**8
"""In one image."""
MOST_VALUE = 2**62
"""Of a disguised image; differences of such values still fit into 64 bits."""
KEY = re.compile(r"([0-9a-f]{16})?")
SHAPE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})")

Words = Mapping[str, protocol.Scalar]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Member:
    """What a node says of its data.

    Attributes
    ----------
    shape, classes : tuple of int, int
        Of an image; how many classes there are.
    key : str
        The fingerprint of the key that disguises the images, empty if they are plain.
    span : Span
        Where values of images lie.
    train, validation, test : int
        Images of each part.
    reports : bool
        Whether it says how often models are right on its images.
    names : str
        A fingerprint of what it calls the classes 0, 1, 2, …; empty if it does not say.
    """

    shape: Shape
    classes: int
    key: str
    span: Span
    train: int
    validation: int
    test: int
    reports: bool
    names: str = ""

    @classmethod
    def read(cls, words: Words) -> Self:
        """Return what a node said as it joined.

        Raises
        ------
        KeyError, ValueError
            If it makes no sense.
        """
        parts = ("train", "validation", "test")
        counts = {part: protocol.whole(words, part, 0, MOST_IMAGES) for part in parts}
        classes = protocol.whole(words, "classes", 2, MOST_CLASSES)
        shape, key = (protocol.text(words, name) for name in ("shape", "key"))
        if not KEY.fullmatch(key):
            raise ValueError(f"{quote(key)} is no fingerprint of a key")
        reports = bool(protocol.whole({"reports": 1, **words}, "reports", 0, 1))
        names = protocol.text({"names": "", **words}, "names")
        return cls(
            _shape(shape), classes, key, _span(words), **counts, reports=reports, names=names
        )


def _shape(text: str) -> Shape:
    """Return the shape of an image, written as 3x32x32."""
    lengths = SHAPE.fullmatch(text)
    if lengths is None:
        raise ValueError(f"images of shape '{text}'")
    channels, height, width = map(int, lengths.groups())
    if not 1 <= channels * height * width <= MOST_VALUES:
        raise ValueError(f"images of shape '{text}'")
    return channels, height, width


def _span(words: Words) -> Span:
    """Return where values of images lie; those of plain images if nothing is said."""
    said = {**asdict(Span()), **words}
    kind = protocol.text(said, "kind")
    low, high = (protocol.whole(said, end, -MOST_VALUE, MOST_VALUE) for end in ("low", "high"))
    if kind not in get_args(Kind) or low >= high:
        raise ValueError(f"images of '{kind}' from {low} to {high}")
    return Span(low, high, kind)  # type: ignore[arg-type]


Images = tuple[Shape, int, Span]
"""Shape of an image, number of classes, and where values lie: the same for all of a case."""


def describe_images(images: Images) -> str:
    """Return what kind of images somebody holds, in words; 0 classes: nobody has said."""
    shape, classes, span = images
    sizes = "x".join(map(str, shape))
    told = f" in {classes} classes" if classes else ""
    return f"images of {sizes}{told}, {span.kind} from {span.low} to {span.high}"
