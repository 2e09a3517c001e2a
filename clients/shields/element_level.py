"""The mechanisms of papers 002 and 004: floating-point noise, and an ε for one element."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import pad

from pudica.clients.shields.analytic import analytic_sigma
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
# S_f in section V.A of paper 004, for activations in [0, 1) and the constants of NormGaussian.
SENSITIVITY = 1 / math.sqrt(2)


class BatchNormLaplaceConfig(ShieldConfig):
    """Normalise each feature over the batch, add Laplace noise (paper 002).

    Attributes
    ----------
    epsilon : float or None, in ε of one element
        How much noise there is: the smaller, the more. None: no noise.
    sensitivity : {"analysis", "experiments"}
        What the noise is calibrated to: 2√(N−1) for batches of N as the paper's analysis proves,
        or √(N−1) as in its experiments.
    """

    name: Literal["batch-norm-laplace"] = "batch-norm-laplace"
    epsilon: float | None = Field(gt=0)
    sensitivity: Literal["analysis", "experiments"] = "analysis"


class BatchNormLaplace(Mechanism):
    """Normalises each feature over the batch, then adds Lap(S/ε): section 3.3 of paper 002.

    Features are flattened. In evaluation mode it uses running statistics, which stay on the
    device, and bounds nothing. Noise for a batch size is too little for larger ones, and a single
    example has no variance: binding refuses it.
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
    """Add Laplace noise to pixels in [0, 1], the baseline of paper 002.

    Attributes
    ----------
    epsilon : float or None, in ε of one pixel
        How much noise there is: the smaller, the more. None: no noise.
    """

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


class NormGaussianConfig(ShieldConfig):
    """Normalise over neighbouring channels, add Gaussian noise: DP-A (paper 004).

    Attributes
    ----------
    epsilon : float or None, in ε of one element
        How much noise there is: the smaller, the more. None: no noise.
    delta : float
        The δ that goes with ε.
    calibration : {"classical", "analytic"}
        The noise's σ: √(2 ln(1.25/δ))/ε as in the paper, proven for ε < 1, or the smallest that
        holds.
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
