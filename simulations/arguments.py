"""Parsing of command-line arguments that hold several numbers."""

from __future__ import annotations

import re

from pudica.models.errors import RequestError


def parse_image_shape(text: str, option: str) -> tuple[int, int, int]:
    """Parse an image shape such as ``1x28x20``; a RequestError names the option."""
    sizes = _parse_sizes(text)
    if len(sizes) != 3:
        raise RequestError(
            f"{option}: '{text}' is not an image shape; write channels x height x width, as in "
            "3x32x32"
        )
    return sizes[0], sizes[1], sizes[2]


def parse_shape(text: str) -> tuple[int, ...]:
    """Parse a shape such as ``80x4x4``."""
    sizes = _parse_sizes(text)
    if not sizes:
        raise RequestError(f"--shape: '{text}' is not a shape; write it as in 80x4x4")
    return sizes


def _parse_sizes(text: str) -> tuple[int, ...]:
    """Parse positive integers separated by x; return () if the text is something else."""
    match = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text)
    return tuple(int(word) for word in text.split("x")) if match else ()


def parse_weights(text: str) -> tuple[float, ...]:
    """Parse three positive weights such as ``1,1,1``."""
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
