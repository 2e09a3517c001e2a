"""Decoding images to uint8 pixels: one, or a whole set into one array with bounded memory."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pudica.clients.data.errors import DataError
from pudica.clients.data.source import Content, RawImage, describe_origin

MIN_SIDE = 8
"""Minimum side of an image in pixels."""
MAX_REPORTED = 10
"""Number of broken images to report before decoding stops."""
HINT = "set PUDICA_CACHE, or a smaller data.image_size"
_BLOCK = 256
_MAX_THREADS = 16
_GREY_MODES = {"1", "L", "LA", "La"}
_ALPHA_MODES = {"RGBA", "LA", "La", "RGBa", "PA"}
_LEAST_DEEP = 4096
_SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}

Channels = Literal[1, 3]
Background = Literal["white", "black"]
Fit = Literal["stretch", "crop", "pad"]


class LayoutRequest(NamedTuple):
    """What is asked for; None takes it from the first image.

    Attributes
    ----------
    size : int or tuple of int, int or None
        The side of a square, or height and width.
    background : {"white", "black"}
        What lies behind transparent pixels, and around images that are padded.
    fit : {"stretch", "crop", "pad"}
        How an image of other proportions is given that size.
    """

    size: int | tuple[int, int] | None = None
    channels: Channels | None = None
    background: Background = "white"
    fit: Fit = "stretch"

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def key(self) -> str:
        """Return this as a part of a file's name."""
        size = "x".join(map(str, self.sides)) if self.sides else "own"
        rest = (self.background != "white" and self.background, self.fit != "stretch" and self.fit)
        return "-".join(map(str, (size, self.channels or "own", *filter(None, rest))))


class Finding(Enum):
    """What is noted about images, each with the words for a number of them."""

    TRANSPARENT = "transparent images were laid on {background}"
    DEEP = "grey images of 16 bits were scaled to 8"
    EVEN = "images are of one colour all over: is that meant?"


class Layout(NamedTuple):
    """The shape that every image of a set is converted to: ``size`` is height and width."""

    size: tuple[int, int]
    channels: Channels
    resize: bool  # whether images may be resized, and converted to grey: only if requested
    to_grey: bool
    background: Background
    fit: Fit


def decode(content: Content, base: Path, request: LayoutRequest, file: Path) -> list[str]:
    """Decode every image into a ``.npy`` file of shape (N, C, H, W); return what is to be said.

    Raises
    ------
    DataError
        Lists file and row of each broken image, up to :data:`MAX_REPORTED` of them.
    """
    layout, stream = open_images(content, base, request)
    shape = (content.train + content.test, layout.channels, *layout.size)
    images = allocate(file, shape, "uint8", HINT)
    broken: list[str] = []
    findings: list[Finding] = []
    even = 0
    for row, result in enumerate(decode_stream(stream, layout, findings)):
        if isinstance(result, DataError):
            broken.append(f"{describe_origin(base, content.segments, row)}: {result}")
            if len(broken) == MAX_REPORTED:
                break
        else:
            images[row] = result
        if (row + 1) % _BLOCK == 0 or row + 1 == len(images):  # while they are at hand
            even += _count_even(images[row - row % _BLOCK : row + 1])
    if broken:
        raise DataError("\n".join(broken))
    images.flush()
    counted = Counter(findings) + Counter({Finding.EVEN: even})
    words = {kind: kind.value.format(background=layout.background) for kind in Finding}
    return [f"{counted[kind]} {words[kind]}" for kind in Finding if counted[kind]]


def _count_even(images: NDArray[np.uint8]) -> int:
    """Return how many images (N, C, H, W) are of one colour all over."""
    pixels = images.reshape(len(images), images.shape[1], -1)
    return int((pixels == pixels[:, :, :1]).all((1, 2)).sum())


def allocate(
    file: Path, shape: tuple[int, ...], dtype: str, hint: str, mode: int = 0o644
) -> np.memmap:
    """Create a memory-mapped array on disk; raise DataError, with a hint, if it does not fit.

    Without the check a full disk would kill the process instead of raising an error.
    """
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
    if needed > free:
        raise DataError(
            f"the images need {needed / 1e9:.1f} GB, {file.parent.parent} has {free / 1e9:.1f} GB "
            f"left: {hint}"
        )
    file.touch(mode)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def open_images(
    content: Content, base: Path, request: LayoutRequest
) -> tuple[Layout, Iterator[RawImage | None]]:
    """Return the images of a set, and their layout: as requested, else that of the first image.

    Raises DataError if there is none, or the first is broken.
    """
    stream = iter(content.images)
    first = next(stream, None)
    if not content.train + content.test:
        raise DataError(f"{base} holds no images")
    try:
        image = _open_image(first, request.background, [])
    except DataError as error:
        raise DataError(f"{describe_origin(base, content.segments, 0)}: {error}") from error
    own: Channels = 1 if image.mode in _GREY_MODES else 3
    layout = Layout(
        request.sides or (image.height, image.width),
        request.channels or own,
        request.size is not None,
        request.channels is not None,
        request.background,
        request.fit,
    )
    return layout, chain([first], stream)


def decode_stream(
    stream: Iterable[RawImage | None], layout: Layout, findings: list[Finding]
) -> Iterator[NDArray[np.uint8] | DataError]:
    """Decode a stream of images in order, a few blocks at a time, on all cores.

    Yields an image (C, H, W), or the error for a broken one; adds what is to be noted of them
    to ``findings``.
    """

    def decode_block(block: list[RawImage | None]) -> list[NDArray[np.uint8] | DataError]:
        return [_decode_or_error(raw, layout, findings) for raw in block]

    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    iterator = iter(stream)
    with ThreadPoolExecutor(workers) as pool:
        while blocks := [block for _ in range(workers) if (block := [*islice(iterator, _BLOCK)])]:
            yield from chain.from_iterable(pool.map(decode_block, blocks))


def _decode_or_error(
    raw: RawImage | None, layout: Layout, findings: list[Finding]
) -> NDArray[np.uint8] | DataError:
    try:
        return to_pixels(raw, layout, findings)
    except DataError as error:
        return error


def to_pixels(raw: RawImage | None, layout: Layout, findings: list[Finding]) -> NDArray[np.uint8]:
    """Decode, convert and resize one image: uint8 of shape (C, H, W).

    Images are resized by PIL's bilinear filter with antialiasing; one of other proportions is
    stretched, cropped around its centre, or padded. What is to be noted of it is added to
    ``findings``.

    Raises DataError if the image is broken or too small, or would need a conversion that was not
    requested.
    """
    image, (height, width) = _open_image(raw, layout.background, findings), layout.size
    mode = "L" if layout.channels == 1 else "RGB"
    if mode == "L" and image.mode not in _GREY_MODES and not layout.to_grey:
        raise DataError(
            "a colour image in a set whose first image is grey: set data.channels to 1 or 3"
        )
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (width, height):
        if not layout.resize:
            raise DataError(
                f"the image is {image.width}×{image.height} pixels, the first one "
                f"{width}×{height}: set data.image_size to resize them all"
            )
        image = _resize(image, (width, height), layout)
    pixels = np.asarray(image)
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def _resize(image: Image.Image, size: tuple[int, int], layout: Layout) -> Image.Image:
    """Return an image of a width and height."""
    bilinear = Image.Resampling.BILINEAR
    if layout.fit == "crop":
        return ImageOps.fit(image, size, bilinear)
    if layout.fit == "pad":
        return ImageOps.pad(image, size, bilinear, color=layout.background)
    return image.resize(size, bilinear)


def _open_image(
    raw: RawImage | None, background: Background, findings: list[Finding]
) -> Image.Image:
    if raw is None:
        raise DataError("no image: its bytes are null")
    image = _from_array(raw) if isinstance(raw, np.ndarray) else _decode_file(raw)
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _scale_to_8_bits(np.asarray(image).astype(np.uint16))
        findings.append(Finding.DEEP)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = _flatten(image, background, findings)
    if image.mode[0] in "IF":
        raise DataError(f"pixels are deeper than 8 bits (mode {image.mode}): convert to 8 bits")
    if min(image.size) < MIN_SIDE:
        raise DataError(
            f"image too small: {image.width}×{image.height} pixels, "
            f"at least {MIN_SIDE}×{MIN_SIDE} are needed"
        )
    return image


def _scale_to_8_bits(pixels: NDArray[np.uint16]) -> Image.Image:
    """Return a grey image of the upper bytes, as PIL itself takes them of colours of 16 bits."""
    if 0 < pixels.max() < _LEAST_DEEP:
        raise DataError(
            f"pixels of 16 bits of which the largest is {pixels.max()}: little of the picture "
            "would be left with 8 bits; scale them to the full range, or convert them"
        )
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image of an array (H, W), (H, W, 1) or (H, W, 3)."""
    try:
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)
    except (TypeError, ValueError) as error:
        raise DataError(f"no image: an array of shape {pixels.shape}") from error


def _flatten(image: Image.Image, background: Background, findings: list[Finding]) -> Image.Image:
    """Return an image without transparency, laid on a background where it has any."""
    grey = image.mode in _GREY_MODES
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        findings.append(Finding.TRANSPARENT)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("L" if grey else "RGB")


def _decode_file(raw: bytes | Path) -> Image.Image:
    try:
        image = Image.open(BytesIO(raw if isinstance(raw, bytes) else raw.read_bytes()))
        image.load()
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except UnidentifiedImageError as error:
        raise DataError("broken image: not a format that PIL knows") from error
    except Exception as error:  # PIL's decoders raise many types on damaged bytes
        raise DataError(f"broken image: {error}") from error
