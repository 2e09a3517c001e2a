"""Image similarity: PSNR and SSIM; and total variation."""

from __future__ import annotations

import torch

WINDOW = 11


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each pair of images in dB, at most 120: (N,).

    The images, (N, C, H, W), have values in [0, 1].
    """
    error = (a - b).square().flatten(1).mean(1).clamp_min(1e-12)
    return -10 * torch.log10(error)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of each pair of images; arguments as in :func:`psnr`."""
    # Imported late: it is slow to import and rarely used.
    from torchmetrics.functional.image import structural_similarity_index_measure

    # The usual window does not fit small images such as 8x8 digits.
    side = min(*a.shape[-2:], WINDOW)
    window = side if side % 2 else side - 1
    similarity = structural_similarity_index_measure(
        a, b, gaussian_kernel=window == WINDOW, kernel_size=window, reduction="none", data_range=1.0
    )
    return torch.as_tensor(similarity)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels of images (N, C, H, W)."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
