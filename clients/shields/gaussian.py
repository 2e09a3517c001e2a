"""The shield of paper 004, DP-A, and how Gaussian noise is calibrated."""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from clients.shields.base import (
    ASSUMED,
    Guarantee,
    Mechanism,
    Noise,
    Shape,
    ShieldConfig,
)

# S_f of section V.A, for activations in [0, 1) and the constants below.
SENSITIVITY = 1 / math.sqrt(2)


@cache
def analytic_sigma(epsilon: float, delta: float) -> float:
    """Return the least σ of Gaussian noise on a sensitivity of 1 (Balle and Wang 2018)."""
    # Imported late: it takes a second, which only its users should pay.
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))


def analytic_epsilon(sigma: float, delta: float) -> float:
    """Return the ε of Gaussian noise of σ on a sensitivity of 1; as :func:`analytic_sigma`."""
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(sigma, delta))


class NormGaussianConfig(ShieldConfig):
    """Settings of :class:`NormGaussian`.

    Attributes
    ----------
    epsilon, delta : float
        Of one element, as the paper counts.
    calibration : {"classical", "analytic"}
        σ = √(2 ln(1.25/δ))/ε as in the paper, proven for ε < 1; or the least that holds.
    """

    name: Literal["norm-gaussian"] = "norm-gaussian"
    epsilon: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    calibration: Literal["classical", "analytic"] = "classical"


class NormGaussian(Mechanism):
    """DP-A: local response normalisation, then N(0, S_f²σ²). Algorithm 1 of paper 004.

    ``u = 5, α = 1, β = 0.5, γ = 2`` of Eq. (4); PyTorch divides its alpha by the size. The
    paper takes activations to be in [0, 1); here they are clamped to it.
    """

    kind: ClassVar[Noise] = "gaussian"
    window = 5

    def __init__(self, config: NormGaussianConfig, shape: Shape, batch: int) -> None:
        super().__init__(config, shape, batch)
        if len(shape) != 3:
            raise ValueError(f"needs channels, height and width at the cut, got {shape}")
        self.normalise = nn.LocalResponseNorm(self.window, alpha=5.0, beta=0.5, k=2.0)

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the normalised activations, each in [0, 1/√3]."""
        normalised: torch.Tensor = self.normalise(tensor.clamp(0, 1))
        return normalised

    @property
    def scale(self) -> float:
        """S_f·σ."""
        epsilon, delta = self.config.epsilon, self.config.delta
        if self.config.calibration == "analytic":
            return SENSITIVITY * analytic_sigma(epsilon, delta)
        return SENSITIVITY * math.sqrt(2 * math.log(1.25 / delta)) / float(epsilon)

    def claimed(self) -> Guarantee:
        """Return the paper's (ε, δ) of one element."""
        reasons = ["one channel at one position is replaced, all others stay"]
        if self.config.calibration == "classical" and self.config.epsilon >= 1:
            reasons.append("σ = √(2 ln(1.25/δ))/ε is proven for ε below 1 only")
        return Guarantee("element", self.config.epsilon, self.config.delta, tuple(reasons))

    def held(self) -> Guarantee:
        """Return (ε, δ) of an image, from the L2 distance that two images can have."""
        channels, height, width = self.shape
        distance = math.sqrt(2 * height * width * self.squared_norm(channels))
        return Guarantee(
            "record",
            analytic_epsilon(self.scale / distance, self.config.delta),
            self.config.delta,
            (
                f"all {channels} channels of {height * width} positions of an image are released",
                *ASSUMED,
            ),
        )

    @classmethod
    def squared_norm(cls, channels: int) -> float:
        """Return a bound on the squared L2 norm over the channels at one position.

        Σ bᵢ/(2 + Σ_window b) with squared activations bᵢ in [0, 1]. Windows reach two
        channels to either side, so each one holds all three channels of its own block of
        three, and a block adds no more than B/(2 + B) with B ≤ 3. All entries are at least 0,
        so the squares of two images' distance is at most the sum of both squared norms.
        """
        block = cls.window // 2 + 1
        sizes = [min(block, channels - start) for start in range(0, channels, block)]
        return sum(size / (2 + size) for size in sizes)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image where no channel is active, and one where all are."""
        dark = torch.zeros(self.batch, *self.shape)
        bright = dark.clone()
        bright[0] = 1
        return dark, bright
