"""``pudica key``: the keys of image disguises."""

from __future__ import annotations

from pathlib import Path

from clients.shields.disguises import Disguise, Key
from models.randomness import SystemGenerator, numpy_generator


def new(notation: str, shape: tuple[int, int, int], out: Path, seed: int | None) -> Key:
    """Draw a key and write it to a new file.

    Parameters
    ----------
    notation : str
        Of the disguise, as ``MAT(256)+MMT(10)``.
    shape : tuple of int
        Channels, height and width of an image.
    seed : int or None
        None: the system's randomness.

    Raises
    ------
    RequestError
        If the notation is wrong or does not fit, or the file is there already.
    """
    randomness = SystemGenerator() if seed is None else numpy_generator(seed, "key")
    key = Key.new(notation, shape, randomness)
    key.save(out)
    return key


def described(key: Key) -> list[str]:
    """Return what may be shown of a key, line by line."""
    disguise = Disguise(key)
    lost = [str(step) for step in key.steps if not step.undone]
    kinds = {"pixels": "pixels", "integers": "whole numbers", "numbers": "real numbers"}
    span = disguise.span
    values = kinds[span.kind] + (
        f" from {span.low:,} to {span.high:,}" if span.kind != "numbers" else ""
    )
    return [
        f"disguise     {key.notation}",
        f"images       {'x'.join(map(str, key.shape))}, become {values}",
        f"the way back {'none: ' + ', '.join(lost) + ' loses' if lost else 'with this key'}",
        f"fingerprint  {key.fingerprint}",
        f"protects     {disguise.held().reasons[0]}",
    ]
