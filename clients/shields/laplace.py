"""The shields of paper 002: Laplace noise on batch-normalised activations, and on pixels."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from pudica.clients.shields.base import (
    ASSUMPTIONS,
    JUST_BELOW,
    Guarantee,
    Mechanism,
    Shape,
    ShieldConfig,
)
from pudica.clients.shields.discrete import NoiseKind

# Activations beyond it are cut off: even float64 could not tell their batch's variance.
LARGEST = 1e6
EPS = 1e-5
MOMENTUM = 0.1


class BatchNormLaplaceConfig(ShieldConfig):
    """Settings of :class:`BatchNormLaplace`.

    Attributes
    ----------
    epsilon : float or None
        Of one element, as the paper counts. None: no noise.
    sensitivity : {"analysis", "experiments"}
        2√(N−1), which the paper proves, or √(N−1), with which it was measured.
    """

    name: Literal["batch-norm-laplace"] = "batch-norm-laplace"
    epsilon: float | None = Field(gt=0)
    sensitivity: Literal["analysis", "experiments"] = "analysis"


class BatchNormLaplace(Mechanism):
    """Each feature normalised over the batch, then Lap(S/ε): section 3.3 of paper 002.

    Features are flattened. In evaluation mode running statistics are used, which stay on the
    device, and nothing is bounded.

    Raises
    ------
    ValueError
        For batches of one example, which have no variance.
    """

    kind: ClassVar[NoiseKind] = "laplace"
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, config: BatchNormLaplaceConfig, shape: Shape, batch: int) -> None:
        super().__init__(config, shape, batch)
        _require_two_examples(batch)
        self.features = math.prod(shape)
        self.register_buffer("mean", torch.zeros(self.features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(self.features, dtype=torch.float64))

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return features of mean 0 and variance 1 over the batch, |x| ≤ √(B−1): Eq. (2)."""
        exact = tensor.flatten(1).double().clamp(-LARGEST, LARGEST)
        if not self.training:
            running = (exact - self.mean) / (self.variance + EPS).sqrt()
            return running.float().view_as(tensor)
        _require_two_examples(len(tensor))
        mean, variance = exact.mean(0), exact.var(0, correction=0)
        self.mean.lerp_(mean.detach(), MOMENTUM)
        self.variance.lerp_(variance.detach(), MOMENTUM)
        most = math.sqrt(len(tensor) - 1) * JUST_BELOW
        normalised = ((exact - mean) / (variance + EPS).sqrt()).clamp(-most, most)
        return normalised.float().view_as(tensor)

    def scale_for(self, epsilon: float) -> float:
        """Return S/ε, for a full batch."""
        factor = 2 if self.config.sensitivity == "analysis" else 1
        return factor * math.sqrt(self.batch - 1) / epsilon

    def paper_guarantee(self) -> Guarantee:
        """Return the paper's ε of one element."""
        reasons = ["one entry of one activation is replaced, all others stay"]
        if self.config.sensitivity == "experiments":
            reasons.append("S = √(N−1) as measured; by the paper's own analysis ε is twice that")
        return Guarantee("element", self.config.epsilon, reasons=tuple(reasons))

    @property
    def sensitivity(self) -> float | None:
        """F·Δ: an example has F features, and moves the whole batch's statistics.

        With t = x_k/√(N−1) of the replaced row k, the other rows are ``−t/√(N−1)`` each plus
        a fixed direction of length √(N(1−t²)) or less. Between any two values of row k they
        move by at most √(4+N) in L2, so √(N−1)·√(N+4) in L1, and row k by 2√(N−1).
        """
        n = self.batch
        moved = math.sqrt(n - 1) * (2 + math.sqrt(n + 4))
        return self.features * moved if self.training else None

    def assumptions(self) -> tuple[str, ...]:
        """Return how much is released and moved; in evaluation mode, why nothing holds."""
        if not self.training:
            return ("running statistics do not bound an activation",)
        return (
            f"all {self.features} features of an example are released",
            "replacing one example moves the normalised values of the whole batch",
            *ASSUMPTIONS,
        )

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batches of ±1 in which one example is replaced by an outlier."""
        usual = torch.ones(self.batch, *self.shape)
        usual[::2] = -1
        usual[0] = 0
        outlier = usual.clone()
        outlier[0] = 1e3
        return usual, outlier


def _require_two_examples(batch: int) -> None:
    if batch < 2:
        raise ValueError("batch normalisation needs batches of at least 2 examples, got 1")


class PixelLaplaceConfig(ShieldConfig):
    """Settings of :class:`PixelLaplace`: ε of a pixel, None for no noise."""

    name: Literal["pixel-laplace"] = "pixel-laplace"
    epsilon: float | None = Field(gt=0)


class PixelLaplace(Mechanism):
    """Noise on pixels in [0, 1], Lap(1/ε): paper 002's comparator, S = 255 of 0 … 255."""

    kind: ClassVar[NoiseKind] = "laplace"

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the pixels, none outside [0, 1]."""
        return tensor.clamp(0, 1)

    def scale_for(self, epsilon: float) -> float:
        """Return 1/ε."""
        return 1 / epsilon

    @property
    def sensitivity(self) -> float:
        """The values of an image, each of which can move by 1."""
        return float(math.prod(self.shape))

    def paper_guarantee(self) -> Guarantee:
        """Return the paper's ε of one pixel."""
        reasons = ("one channel of one pixel is replaced",)
        return Guarantee("element", self.config.epsilon, reasons=reasons)

    def assumptions(self) -> tuple[str, ...]:
        """Return how much of an image is released, and what else its guarantee rests on."""
        return (f"all {math.prod(self.shape)} values of an image are released",)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a black and a white image among black ones."""
        black = torch.zeros(self.batch, *self.shape)
        white = black.clone()
        white[0] = 1
        return black, white
