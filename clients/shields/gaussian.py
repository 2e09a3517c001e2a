"""The shield of paper 004, DP-A."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import pad

from pudica.clients.shields.analytic import analytic_sigma
from pudica.clients.shields.base import (
    ASSUMPTIONS,
    Guarantee,
    Mechanism,
    Shape,
    ShieldConfig,
)
from pudica.clients.shields.discrete import NoiseKind

# S_f in section V.A, for activations in [0, 1) and the constants below.
SENSITIVITY = 1 / math.sqrt(2)


class NormGaussianConfig(ShieldConfig):
    """Settings of :class:`NormGaussian`.

    Attributes
    ----------
    epsilon : float or None
        ε of one element, as the paper counts. None: no noise.
    delta : float
    calibration : {"classical", "analytic"}
        σ = √(2 ln(1.25/δ))/ε as in the paper, proven for ε < 1; or the smallest σ that holds.
    """

    name: Literal["norm-gaussian"] = "norm-gaussian"
    epsilon: float | None = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    calibration: Literal["classical", "analytic"] = "classical"


class NormGaussian(Mechanism):
    """DP-A: local response normalisation, then N(0, S_f²σ²). Algorithm 1 of paper 004.

    With ``u = 5, α = 1, β = 0.5, γ = 2`` in Eq. (4); PyTorch divides its alpha by the size. The
    paper assumes activations in [0, 1); here they are clamped to [0, 1].
    """

    schema = NormGaussianConfig
    kind: ClassVar[NoiseKind] = "gaussian"
    window = 5

    def _prepare(self, shape: Shape, batch_size: int) -> None:  # noqa: ARG002
        if len(shape) != 3:
            raise ValueError(f"needs channels, height and width at the cut, got {shape}")

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the normalised activations, each in [0, 1/√3]."""
        clamped = tensor.clamp(0, 1)
        return clamped * torch.rsqrt(2 + self._sum_over_window(clamped.square()))

    def _sum_over_window(self, squares: torch.Tensor) -> torch.Tensor:
        """Return the sums over the neighbouring channels of each channel, (B, C, H, W).

        ``nn.LocalResponseNorm(5, alpha=5, beta=0.5, k=2)`` computes the same with a 3D pooling,
        which takes several times as long.
        """
        reach, channels = self.window // 2, squares.shape[1]
        wide = pad(squares, (0, 0, 0, 0, reach, reach))
        total = wide[:, :channels]
        for i in range(1, self.window):
            total = total + wide[:, i : i + channels]
        return total

    def scale_for(self, epsilon: float) -> float:
        """Return S_f·σ."""
        delta = self.config.delta
        if self.config.calibration == "analytic":
            return SENSITIVITY * analytic_sigma(epsilon, delta)
        return SENSITIVITY * math.sqrt(2 * math.log(1.25 / delta)) / epsilon

    def paper_guarantee(self) -> Guarantee:
        """Return the paper's (ε, δ) for one element."""
        reasons = ["one channel at one position is replaced, all others stay"]
        if self.config.calibration == "classical" and self.config.epsilon >= 1:
            reasons.append("σ = √(2 ln(1.25/δ))/ε is proven for ε below 1 only")
        return Guarantee("element", self.config.epsilon, self.config.delta, tuple(reasons))

    @property
    def sensitivity(self) -> float:
        """A bound on the L2 distance between two images."""
        channels, height, width = self.shape
        return math.sqrt(2 * height * width * self.squared_norm(channels))

    def assumptions(self) -> tuple[str, ...]:
        """Return how much of an image is released, and the other assumptions."""
        channels, height, width = self.shape
        released = f"all {channels} channels of {height * width} positions of an image are released"
        return (released, *ASSUMPTIONS)

    @classmethod
    def squared_norm(cls, channels: int) -> float:
        """Return a bound on the squared L2 norm over the channels at one position.

        The norm is Σ bᵢ/(2 + Σ_window b) with squared activations bᵢ in [0, 1]. A window reaches
        two channels to either side, so it contains all three channels of its own block of three,
        and a block adds at most B/(2 + B) with B ≤ 3. All entries are nonnegative, so the squared
        distance of two images is at most the sum of their squared norms.
        """
        block = cls.window // 2 + 1
        sizes = [min(block, channels - start) for start in range(0, channels, block)]
        return sum(size / (2 + size) for size in sizes)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image with no active channel, and one with all channels active."""
        dark = torch.zeros(self.batch_size, *self.shape)
        bright = dark.clone()
        bright[0] = 1
        return dark, bright
