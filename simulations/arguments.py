"""Words of the command line that stand for several numbers."""

from __future__ import annotations

import re

from pudica.models.errors import RequestError


def parse_image_shape(text: str, option: str) -> tuple[int, int, int]:
    """Return ``1x28x20``, which is an option's, as numbers: an image of any size.

    Raises
    ------
    RequestError
        If it is not that.
    """
    sizes = _parse_sizes(text)
    if len(sizes) != 3:
        raise RequestError(
            f"{option}: '{text}' is no image; write channels x height x width, as in 3x32x32"
        )
    return sizes[0], sizes[1], sizes[2]


def parse_shape(text: str) -> tuple[int, ...]:
    """Return ``80x4x4`` as numbers.

    Raises
    ------
    RequestError
        If it is not that.
    """
    sizes = _parse_sizes(text)
    if not sizes:
        raise RequestError(f"--shape: '{text}' is no shape; write it as in 80x4x4")
    return sizes


def _parse_sizes(text: str) -> tuple[int, ...]:
    """Return sizes above zero with an x between them as numbers; none if it is not that."""
    right = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text)
    return tuple(int(word) for word in text.split("x")) if right else ()


def parse_weights(text: str) -> tuple[float, ...]:
    """Return ``1,1,1`` as numbers.

    Raises
    ------
    RequestError
        If it is not three numbers above zero.
    """
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0 < number < float("inf") for number in numbers):
        raise RequestError(
            f"--weights: '{text}' must be three numbers above 0, of privacy, resources and "
            "accuracy, as in 1,1,1"
        )
    return numbers
