"""Random augmentations of training images that keep their class, a whole batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

CROP = 4

# Ranges for handwriting: angles in degrees, lengths as a share of half an image's side.
ROTATION, SHEAR, ASPECT, SIZE, SHIFT, WAVES = 20.0, 0.45, 0.35, 0.1, 0.07, 0.09
THRESHOLD, SOFTNESS = (0.25, 0.7), (0.05, 0.15)


def crop_flip(x: torch.Tensor, black: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by up to 4 pixels and flip half of them.

    Equivalent to ``RandomCrop(side, padding=4)`` and ``RandomHorizontalFlip`` on each image.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    black : Tensor of shape (C, 1, 1)
        A black pixel in the units of ``x``.
    """
    batch, channels, height, width = x.shape
    padded = black.expand(batch, channels, height + 2 * CROP, width + 2 * CROP).clone()
    padded[:, :, CROP:-CROP, CROP:-CROP] = x
    top, left = torch.randint(0, 2 * CROP + 1, (2, batch, 1), generator=generator)
    rows = torch.arange(height) + top
    columns = torch.arange(width) + left
    flipped = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    images = torch.arange(batch)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def distort_handwriting(
    x: torch.Tensor, black: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Distort each image like handwriting: slant, stretch, bend, thinner or thicker strokes.

    For bright strokes on black. The arguments are those of :func:`crop_flip`.
    """
    strokes = x - black
    full = strokes.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    grid = _build_sampling_grid(x.shape, generator)
    bent = grid_sample(strokes / full, grid, align_corners=False)
    threshold = _draw_uniform(len(x), *THRESHOLD, generator)
    softness = _draw_uniform(len(x), *SOFTNESS, generator)
    # The threshold on a blurred stroke's grey sets the pen's width; black must stay black.
    inked = torch.sigmoid((bent - threshold) / softness) - torch.sigmoid(-threshold / softness)
    peak = inked.amax((1, 2, 3), keepdim=True).clamp(min=0.1)
    return black + full * (inked / peak).clamp(0, 1)


def _build_sampling_grid(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return where each pixel is sampled, (B, H, W, 2): an affine map plus a smooth wave."""
    batch, _, height, width = shape

    def span(most: float) -> torch.Tensor:
        return _draw_uniform(batch, -most, most, generator).flatten()

    angle, shear, aspect = span(math.radians(ROTATION)), span(SHEAR), span(ASPECT).exp()
    size = span(SIZE).exp()
    cosine, sine = angle.cos(), angle.sin()
    across, down = size * aspect, size / aspect.sqrt()
    rows = (
        torch.stack([cosine * across, cosine * shear - sine * down, span(SHIFT)], 1),
        torch.stack([sine * across, sine * shear + cosine * down, span(SHIFT)], 1),
    )
    grid = affine_grid(torch.stack(rows, 1), list(shape), align_corners=False)
    coarse = WAVES * torch.randn(batch, 2, 4, 4, generator=generator)
    waves = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return grid + waves.permute(0, 2, 3, 1)


def _draw_uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Draw uniform numbers of shape (count, 1, 1, 1)."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]] = {
    "crop-flip": crop_flip,
    "handwriting": distort_handwriting,
}
