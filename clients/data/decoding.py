"""Decoding a whole data set into one array on disk, with bounded memory."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pudica.clients.data.errors import DataError
from pudica.clients.data.pixels import Channels, Layout, infer_layout, to_pixels
from pudica.clients.data.source import Content, RawImage, describe_origin

#: Number of broken images to report before decoding stops.
MAX_REPORTED = 10

HINT = "set PUDICA_CACHE, or a smaller data.image_size"
_BLOCK = 256
_MAX_THREADS = 16

DecodeResult = NDArray[np.uint8] | DataError


def decode(
    content: Content, base: Path, size: int | None, channels: Channels | None, file: Path
) -> None:
    """Decode every image into a ``.npy`` file of shape (N, C, H, W), block by block.

    Raises
    ------
    DataError
        Lists file and row of each broken image, up to :data:`MAX_REPORTED` of them.
    """
    total = content.train + content.test
    stream = iter(content.images)
    first = next(stream, None)
    if total == 0:
        raise DataError(f"{base} holds no images")
    try:
        layout = infer_layout(first, size, channels)
    except DataError as error:
        raise DataError(f"{describe_origin(base, content.segments, 0)}: {error}") from error
    images = allocate(file, (total, layout.channels, layout.size, layout.size), "uint8", HINT)
    broken: list[str] = []
    for row, result in enumerate(decode_stream(chain([first], stream), layout)):
        if isinstance(result, DataError):
            broken.append(f"{describe_origin(base, content.segments, row)}: {result}")
            if len(broken) == MAX_REPORTED:
                break
        else:
            images[row] = result
    if broken:
        raise DataError("\n".join(broken))
    images.flush()


def allocate(
    file: Path, shape: tuple[int, ...], dtype: str, hint: str, mode: int = 0o644
) -> np.memmap:
    """Create a memory-mapped array on disk, after checking that it fits.

    Without the check a full disk would kill the process instead of raising an error.

    Parameters
    ----------
    hint : str
        What to do if it does not fit; part of the message.
    mode : int
        File mode.

    Raises
    ------
    DataError
        If it does not fit.
    """
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
    if needed > free:
        raise DataError(
            f"the images need {needed / 1e9:.1f} GB, {file.parent.parent} has {free / 1e9:.1f} GB "
            f"left: {hint}"
        )
    file.touch(mode)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def decode_stream(stream: Iterable[RawImage | None], layout: Layout) -> Iterator[DecodeResult]:
    """Decode a stream of images in order, a few blocks at a time, on all cores.

    Yields an image (C, H, W), or the error for a broken one.
    """
    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    iterator = iter(stream)
    with ThreadPoolExecutor(workers) as pool:
        while blocks := [block for _ in range(workers) if (block := [*islice(iterator, _BLOCK)])]:
            yield from _decode_blocks(pool, blocks, layout)


def _decode_blocks(
    pool: Executor, blocks: list[list[RawImage | None]], layout: Layout
) -> Iterator[DecodeResult]:
    def decode_one(raw: RawImage | None) -> DecodeResult:
        try:
            return to_pixels(raw, layout)
        except DataError as error:
            return error

    return chain.from_iterable(pool.map(lambda block: [decode_one(raw) for raw in block], blocks))
