"""Decoding a single image to an array of uint8 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pudica.clients.data.errors import DataError
from pudica.clients.data.source import RawImage

#: Minimum side of an image in pixels.
MIN_SIDE = 8

Channels = Literal[1, 3]

_GREY_MODES = {"1", "L", "LA", "La"}


@dataclass(frozen=True)
class Layout:
    """The shape that every image of a set is converted to.

    Parameters
    ----------
    size : int
        Side of the square, in pixels.
    channels : {1, 3}
        Grey or RGB.
    resize, to_grey : bool
        Whether images may be resized and converted to grey: only if requested.
    """

    size: int
    channels: Channels
    resize: bool
    to_grey: bool


def infer_layout(first: RawImage | None, size: int | None, channels: Channels | None) -> Layout:
    """Complete the requested layout from the set's first image.

    Raises
    ------
    DataError
        If the image is broken, or not square and no size was requested.
    """
    image = open_image(first)
    if size is None and image.width != image.height:
        raise DataError(
            f"the image is {image.width}×{image.height} pixels, not square: "
            "set data.image_size to the side that all images are resized to"
        )
    own: Channels = 1 if image.mode in _GREY_MODES else 3
    return Layout(size or image.width, channels or own, size is not None, channels is not None)


def to_pixels(raw: RawImage | None, layout: Layout) -> NDArray[np.uint8]:
    """Decode, convert and resize one image.

    Images are resized by PIL's bilinear filter with antialiasing; an image that is not square is
    stretched, not cropped.

    Returns
    -------
    ndarray of uint8, shape (channels, size, size)

    Raises
    ------
    DataError
        If the image is broken or too small, or would need a conversion that was not requested.
    """
    image = _recolour(open_image(raw), layout)
    side = (layout.size, layout.size)
    if image.size != side:
        _check_resizable(image, layout)
        image = image.resize(side, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def open_image(raw: RawImage | None) -> Image.Image:
    """Decode one image and apply its EXIF orientation.

    Raises
    ------
    DataError
        If it is missing, broken, truncated, too small or not 8 bits deep.
    """
    if raw is None:
        raise DataError("no image: its bytes are null")
    image = Image.fromarray(raw) if isinstance(raw, np.ndarray) else _decode(raw)
    if image.mode[0] in "IF":
        raise DataError(f"pixels are deeper than 8 bits (mode {image.mode}): convert to 8 bits")
    if min(image.size) < MIN_SIDE:
        raise DataError(
            f"image too small: {image.width}×{image.height} pixels, "
            f"at least {MIN_SIDE}×{MIN_SIDE} are needed"
        )
    return image


def _decode(raw: bytes | Path) -> Image.Image:
    try:
        image = Image.open(BytesIO(raw if isinstance(raw, bytes) else raw.read_bytes()))
        image.load()
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except UnidentifiedImageError as error:
        raise DataError("broken image: not a format that PIL knows") from error
    except Exception as error:  # PIL's decoders raise many types on damaged bytes
        raise DataError(f"broken image: {error}") from error


def _recolour(image: Image.Image, layout: Layout) -> Image.Image:
    mode = "L" if layout.channels == 1 else "RGB"
    if mode == "L" and image.mode not in _GREY_MODES and not layout.to_grey:
        raise DataError(
            "a colour image in a set whose first image is grey: set data.channels to 1 or 3"
        )
    return image if image.mode == mode else image.convert(mode)


def _check_resizable(image: Image.Image, layout: Layout) -> None:
    if not layout.resize:
        raise DataError(
            f"the image is {image.width}×{image.height} pixels, the first one "
            f"{layout.size}×{layout.size}: set data.image_size to resize them all"
        )
