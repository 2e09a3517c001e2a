"""The shields of paper 002: Laplace noise on batch-normalised activations and on pixels."""

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

# Activations beyond it are clamped: even float64 could not resolve their batch's variance.
LARGEST = 1e6
EPS = 1e-5
MOMENTUM = 0.1


class BatchNormLaplaceConfig(ShieldConfig):
    """Settings of :class:`BatchNormLaplace`.

    Attributes
    ----------
    epsilon : float or None
        ε of one element, as the paper counts. None: no noise.
    sensitivity : {"analysis", "experiments"}
        2√(N−1), which the paper proves, or √(N−1), which its experiments used.
    """

    name: Literal["batch-norm-laplace"] = "batch-norm-laplace"
    epsilon: float | None = Field(gt=0)
    sensitivity: Literal["analysis", "experiments"] = "analysis"


class BatchNormLaplace(Mechanism):
    """Normalises each feature over the batch, then adds Lap(S/ε): section 3.3 of paper 002.

    Features are flattened. In evaluation mode it uses running statistics, which stay on the
    device, and bounds nothing. Noise for a batch size is too little for larger ones.

    Raises
    ------
    RequestError
        On binding, if a batch has a single example, which has no variance.
    """

    schema = BatchNormLaplaceConfig
    kind: ClassVar[NoiseKind] = "laplace"
    batch_matters = True
    mean: torch.Tensor
    variance: torch.Tensor

    def _prepare(self, shape: Shape, batch_size: int) -> None:
        _require_two_examples(batch_size)
        self.features = math.prod(shape)
        self.register_buffer("mean", torch.zeros(self.features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(self.features, dtype=torch.float64))

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return features with mean 0 and variance 1 over the batch, within ±√(B−1): Eq. (2)."""
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
        """Return S/ε for a full batch."""
        factor = 2 if self.config.sensitivity == "analysis" else 1
        return factor * math.sqrt(self.batch_size - 1) / epsilon

    def paper_guarantee(self) -> Guarantee:
        """Return the paper's ε for one element."""
        reasons = ["one entry of one activation is replaced, all others stay"]
        if self.config.sensitivity == "experiments":
            reasons.append("S = √(N−1) as measured; by the paper's own analysis ε is twice that")
        return Guarantee("element", self.config.epsilon, reasons=tuple(reasons))

    @property
    def sensitivity(self) -> float | None:
        """F·Δ: an example has F features, and moves the whole batch's statistics.

        With t = x_k/√(N−1) for the replaced row k, the other rows are ``−t/√(N−1)`` each, plus a
        fixed direction of length at most √(N(1−t²)). Between any two values of row k they move by
        at most √(4+N) in L2, hence √(N−1)·√(N+4) in L1, and row k moves by 2√(N−1).
        """
        n = self.batch_size
        moved = math.sqrt(n - 1) * (2 + math.sqrt(n + 4))
        return self.features * moved if self.training else None

    def assumptions(self) -> tuple[str, ...]:
        """Return how much is released and moved; in evaluation mode, why there is no guarantee."""
        if not self.training:
            return ("running statistics do not bound an activation",)
        return (
            f"all {self.features} features of an example are released",
            "replacing one example moves the normalised values of the whole batch",
            *ASSUMPTIONS,
        )

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batches of ±1 that differ in one example, which is an outlier in one of them."""
        usual = torch.ones(self.batch_size, *self.shape)
        usual[::2] = -1
        usual[0] = 0
        outlier = usual.clone()
        outlier[0] = 1e3
        return usual, outlier


def _require_two_examples(batch: int) -> None:
    if batch < 2:
        raise ValueError("batch normalisation needs batches of at least 2 examples, got 1")


class PixelLaplaceConfig(ShieldConfig):
    """Settings of :class:`PixelLaplace`: ε of a pixel (None: no noise)."""

    name: Literal["pixel-laplace"] = "pixel-laplace"
    epsilon: float | None = Field(gt=0)


class PixelLaplace(Mechanism):
    """Adds Lap(1/ε) to pixels in [0, 1]: paper 002's baseline, where S = 255 for 0 … 255."""

    schema = PixelLaplaceConfig
    kind: ClassVar[NoiseKind] = "laplace"

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the pixels, clamped to [0, 1]."""
        return tensor.clamp(0, 1)

    def scale_for(self, epsilon: float) -> float:
        """Return 1/ε."""
        return 1 / epsilon

    @property
    def sensitivity(self) -> float:
        """The number of values in an image, each of which can move by 1."""
        return float(math.prod(self.shape))

    def paper_guarantee(self) -> Guarantee:
        """Return the paper's ε for one pixel."""
        reasons = ("one channel of one pixel is replaced",)
        return Guarantee("element", self.config.epsilon, reasons=reasons)

    def assumptions(self) -> tuple[str, ...]:
        """Return how much of an image is released."""
        return (f"all {math.prod(self.shape)} values of an image are released",)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return black images, and the same with the first one white."""
        black = torch.zeros(self.batch_size, *self.shape)
        white = black.clone()
        white[0] = 1
        return black, white
