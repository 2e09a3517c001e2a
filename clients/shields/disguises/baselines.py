"""Disguises that paper 001 compares with: Sharma's, Kiya's, noise and blur."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from pudica.clients.shields.disguises.steps import (
    ImageShape,
    Span,
    Step,
    Tensors,
    WrongKeyError,
    require_integer,
)
from pudica.clients.shields.draws import draw_orthogonal, draw_permutations
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, SecretGenerator

ROUNDING = 0.05
LEAST_SIGMA = 0.1
NOISE_KEY = "noise"


@dataclass(frozen=True)
class Sharma(Step):
    """Shuffles blocks, adds noise, and multiplies each block by its own orthogonal matrix.

    By Sharma et al. (CLOUD 2021).

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

    block: int
    noise: float = 0
    permute: int = 0
    name: ClassVar[str] = "Sharma"

    def __post_init__(self) -> None:
        require_integer(self, "block", "block", 1)
        require_integer(self, "permute", "permute", 0)
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
        for what, side in (("block", self.block), ("permute", self.permute or 1)):
            if height % side or width % side:
                common = math.gcd(height, width)
                divisors = [str(d) for d in range(1, common + 1) if common % d == 0]
                raise RequestError(
                    f"Sharma: {what} = {side} does not divide images of {height}x{width}; "
                    f"allowed: {', '.join(divisors)}"
                )

        def count_blocks(side: int) -> int:
            return (height // side) * (width // side)

        matrices = (channels, count_blocks(self.block), self.block, self.block)
        key = {"rotations": draw_orthogonal(matrices, randomness)}
        if self.permute:
            key["order"] = draw_permutations((count_blocks(self.permute),), randomness)
        return key | (draw_noise_key(randomness) if self.noise else {})

    def is_valid_key(self, key: Tensors) -> bool:
        """Tell whether the matrices are orthogonal and the order is a permutation."""
        rotations = key["rotations"].double()
        unit = torch.eye(rotations.shape[-1], dtype=torch.float64).expand_as(rotations)
        is_orthogonal = torch.allclose(rotations @ rotations.mT, unit, atol=1e-5)
        return is_orthogonal and ("order" not in key or _is_permutation(key["order"]))

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Shuffle, add noise, rotate."""
        values = images.float()
        if self.permute:
            values = _reorder_blocks(values, self.permute, key["order"])
        if self.noise:
            uniform = draw_image_noise(images, key[NOISE_KEY], lambda r, shape: r.random(shape))
            values = values + self.noise * uniform
        return _multiply_blocks(key["rotations"], values, self.block)

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Rotate back, shuffle back, round to whole numbers."""
        values = _multiply_blocks(key["rotations"].mT, images, self.block)
        if self.permute:
            values = _reorder_blocks(values, self.permute, key["order"].argsort())
        rounded = values.round()
        # Float32 errors are some thousandths; another key's matrices leave fractions.
        if values.numel() and float((values - rounded).abs().max()) > ROUNDING:
            raise WrongKeyError
        return rounded


def _reorder_blocks(images: torch.Tensor, side: int, order: torch.Tensor) -> torch.Tensor:
    return _join_blocks(_split_blocks(images, side)[:, :, order], images.shape)


def _multiply_blocks(matrices: torch.Tensor, images: torch.Tensor, side: int) -> torch.Tensor:
    return _join_blocks(matrices @ _split_blocks(images, side), images.shape)


def _split_blocks(images: torch.Tensor, side: int) -> torch.Tensor:
    """Split images (B, C, H, W) into blocks (B, C, n, side, side), row by row."""
    count, channels, height, width = images.shape
    rows = images.reshape(count, channels, height // side, side, width // side, side)
    return rows.transpose(3, 4).reshape(count, channels, -1, side, side)


def _join_blocks(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    height, width, side = *shape[2:], blocks.shape[-1]
    rows = blocks.reshape(*shape[:2], height // side, width // side, side, side)
    return rows.transpose(3, 4).reshape(shape)


@dataclass(frozen=True)
class Kiya(Step):
    """Maps each value q to q or 255 − q by a key bit, then shuffles each pixel's colours.

    Pixel-based encryption by Kiya's group (Sirichotedumrong et al., ICIP 2019). Each pixel has its
    own shuffle; grey images have none.
    """

    name: ClassVar[str] = "Kiya"

    def span(self, before: Span) -> Span:
        """Pixels stay pixels."""
        return before

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:
        """Draw ``flip`` (C, H, W), 0 or 255, and ``colours`` (C, H, W), the source channels."""
        channels, height, width = shape
        bits = np.frombuffer(randomness.bytes(math.prod(shape)), np.uint8) & 1
        orders = draw_permutations((height, width, channels), randomness)
        return {
            "flip": torch.from_numpy(bits.reshape(shape) * np.uint8(255)),
            "colours": orders.permute(2, 0, 1).contiguous(),
        }

    def is_valid_key(self, key: Tensors) -> bool:
        """Tell whether flips are 0 or 255 and colours are permutations."""
        flips = bool(((key["flip"] == 0) | (key["flip"] == 255)).all())
        return flips and _is_permutation(key["colours"].movedim(0, -1))

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Flip, then shuffle."""
        flipped = images ^ key["flip"]  # 255 − q, in bits
        return flipped.gather(1, key["colours"].expand(len(images), -1, -1, -1))

    def undo(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Shuffle back, then flip."""
        back = key["colours"].argsort(0).expand(len(images), -1, -1, -1)
        return images.gather(1, back) ^ key["flip"]


def _is_permutation(orders: torch.Tensor) -> bool:
    return bool((orders.sort(-1).values == torch.arange(orders.shape[-1])).all())


@dataclass(frozen=True)
class _Picture(Step):
    """A lossy step from pixels to pixels, without a way back."""

    sigma: float
    most: ClassVar[float]

    def __post_init__(self) -> None:
        if not LEAST_SIGMA <= self.sigma <= self.most:
            raise RequestError(
                f"{self.name}: sigma must be {LEAST_SIGMA:g} to {self.most:g}, is {self.sigma:g}"
            )

    @property
    def is_invertible(self) -> bool:
        return False

    def span(self, before: Span) -> Span:
        return before


@dataclass(frozen=True)
class GaussianNoise(_Picture):
    """Gaussian noise with standard deviation ``sigma`` on pixels 0 to 255, rounded and clamped."""

    name: ClassVar[str] = "Noise"
    most: ClassVar[float] = 1000

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Draw the key that each image's noise is derived from."""
        return draw_noise_key(randomness)

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:
        """Add noise that depends on the key and the image."""
        drawn = draw_image_noise(images, key[NOISE_KEY], lambda r, shape: r.standard_normal(shape))
        noisy = images.float().add_(drawn, alpha=self.sigma)
        return noisy.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Blur(_Picture):
    """Gaussian blur with standard deviation ``sigma`` in pixels, truncated at 3 ``sigma``."""

    name: ClassVar[str] = "Blur"
    most: ClassVar[float] = 100

    def draw(self, shape: ImageShape, randomness: Randomness) -> Tensors:  # noqa: ARG002
        """Check the images' size: pixels beyond an edge are mirrored once at most."""
        reach, side = math.ceil(3 * self.sigma), min(shape[1:])
        if reach >= side:
            raise RequestError(
                f"Blur: sigma = {self.sigma:g} reaches {reach} pixels, and images are "
                f"{shape[1]}x{shape[2]}; allowed: up to {(side - 1) / 3:.3g}"
            )
        return {}

    def apply(self, images: torch.Tensor, key: Tensors) -> torch.Tensor:  # noqa: ARG002
        """Blur."""
        from torchvision.transforms import functional  # slow to import

        size = 2 * math.ceil(3 * self.sigma) + 1
        blurred: torch.Tensor = functional.gaussian_blur(images, [size] * 2, [self.sigma] * 2)
        return blurred


def draw_noise_key(randomness: Randomness) -> Tensors:
    """Draw a noise key of 32 random bytes."""
    return {NOISE_KEY: torch.frombuffer(bytearray(randomness.bytes(32)), dtype=torch.uint8)}


def draw_image_noise(
    images: torch.Tensor,
    key: torch.Tensor,
    draw: Callable[[SecretGenerator, tuple[int, ...]], np.ndarray],
) -> torch.Tensor:
    """Draw float32 noise for each image (B, C, H, W), the same whenever it is disguised again.

    It depends on the key and the image's content only. So nobody who sees an image disguised
    twice can average it away, and neither the order nor the size of batches matters.
    """
    secret = key.numpy().tobytes()
    noise = np.empty(tuple(images.shape), np.float32)
    for number, image in enumerate(images.contiguous().numpy()):
        digest = hashlib.blake2b(image.tobytes(), digest_size=32).digest()
        noise[number] = draw(SecretGenerator(secret, digest), image.shape)
    return torch.from_numpy(noise)
