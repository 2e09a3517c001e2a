"""Image disguising by Sharma et al. (CLOUD 2021): each block is rotated by its own matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pudica.clients.shields.disguises.noise import NOISE_KEY, draw_image_noise, draw_noise_key
from pudica.clients.shields.disguises.steps import (
    ImageShape,
    Span,
    Step,
    Tensors,
    WrongKeyError,
    is_permutation,
    parse_integer,
)
from pudica.clients.shields.draws import draw_orthogonal, draw_permutations
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness

ROUNDING = 0.05


@dataclass(frozen=True)
class Sharma(Step):
    """Shuffles blocks, adds noise, and multiplies each block by its own orthogonal matrix.

    Attributes
    ----------
    block : int
        Side of the blocks that the matrices multiply from the left.
    noise : float
        N: fresh noise for each image, uniform on [0, N), added before the multiplication.
    permute : int
        Side of the blocks that are shuffled first; 0 keeps their order. It is separate from
        ``block`` because the paper's single block per image leaves nothing to shuffle.

    Notes
    -----
    Paper 001 does not say whether the noise comes before or after the matrix; an orthogonal
    matrix does not change its length.
    """

    block: float
    noise: float = 0
    permute: float = 0
    name: ClassVar[str] = "Sharma"

    def __post_init__(self) -> None:
        """Check the settings."""
        parse_integer(self.name, "block", self.block, 1)
        parse_integer(self.name, "permute", self.permute, 0)
        if not 0 <= self.noise <= 10_000:
            raise RequestError(f"Sharma: noise must be 0 to 10000, is {self.noise:g}")

    @property
    def is_invertible(self) -> bool:
        """Whether the step adds no noise."""
        return self.noise == 0

    def span(self, before: Span) -> Span:
        """Return a range of real numbers: a rotation keeps a column's length, which bounds it."""
        longest = math.ceil((before.high + self.noise) * math.sqrt(self.block))
        return Span(-longest, longest, "numbers")

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:
        """Draw ``rotations`` (C, blocks, b, b), and ``order`` and ``noise`` if they are used."""
        channels, height, width = shape
        side, permuted = int(self.block), int(self.permute)
        for what, size in (("block", side), ("permute", permuted or 1)):
            if height % size or width % size:
                divisors = [
                    d for d in range(1, min(height, width) + 1) if not (height % d or width % d)
                ]
                raise RequestError(
                    f"Sharma: {what} = {size} does not divide images of {height}x{width}; "
                    f"allowed: {', '.join(map(str, divisors))}"
                )
        blocks = (height // side) * (width // side)
        key = {"rotations": draw_orthogonal((channels, blocks, side, side), randomness)}
        if permuted:
            key["order"] = draw_permutations(
                ((height // permuted) * (width // permuted),), randomness
            )
        return key | (draw_noise_key(randomness) if self.noise else {})

    def is_valid_key(self, key: Tensors) -> bool:
        """Tell whether the matrices are orthogonal and the order is a permutation."""
        rotations = key["rotations"].double()
        unit = torch.eye(rotations.shape[-1], dtype=torch.float64).expand_as(rotations)
        is_orthogonal = torch.allclose(rotations @ rotations.mT, unit, atol=1e-5)
        return is_orthogonal and ("order" not in key or is_permutation(key["order"]))

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Shuffle, add noise, rotate."""
        size = tuple(images.shape[2:])
        values = images.float()
        if self.permute:
            blocks = split_blocks(values, int(self.permute))[:, :, key["order"]]
            values = join_blocks(blocks, size)
        if self.noise:
            uniform = draw_image_noise(images, key[NOISE_KEY], lambda r, shape: r.random(shape))
            values = values + self.noise * uniform
        return join_blocks(key["rotations"] @ split_blocks(values, int(self.block)), size)

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Rotate back, shuffle back, round to whole numbers."""
        size = tuple(images.shape[2:])
        values = join_blocks(key["rotations"].mT @ split_blocks(images, int(self.block)), size)
        if self.permute:
            blocks = split_blocks(values, int(self.permute))[:, :, key["order"].argsort()]
            values = join_blocks(blocks, size)
        rounded = values.round()
        # Float32 errors are some thousandths; another key's matrices leave fractions.
        if values.numel() and float((values - rounded).abs().max()) > ROUNDING:
            raise WrongKeyError
        return rounded


def split_blocks(images: torch.Tensor, side: int) -> torch.Tensor:
    """Split images (B, C, H, W) into blocks (B, C, n, side, side), row by row."""
    count, channels, height, width = images.shape
    rows = images.reshape(count, channels, height // side, side, width // side, side)
    return rows.transpose(3, 4).reshape(count, channels, -1, side, side)


def join_blocks(blocks: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Join blocks from :func:`split_blocks` to images (B, C, H, W) of a size (H, W)."""
    count, channels, _, side, _ = blocks.shape
    height, width = size
    rows = blocks.reshape(count, channels, height // side, width // side, side, side)
    return rows.transpose(3, 4).reshape(count, channels, height, width)
