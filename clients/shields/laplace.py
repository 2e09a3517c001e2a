"""Shields with Laplace noise: paper 002, per-example clipping, raw pixels."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from clients.shields.base import Guarantee, Mechanism, Shape, ShieldConfig

# Of a float32 sum that was rounded up.
JUST_BELOW = 1 - 1e-6


class BatchNormLaplaceConfig(ShieldConfig):
    """Settings of :class:`BatchNormLaplace`.

    Attributes
    ----------
    epsilon : float
        Of one element, as the paper counts.
    sensitivity : {"analysis", "experiments"}
        2√(N−1), which the paper proves, or √(N−1), with which it was measured.
    """

    name: Literal["batch-norm-laplace"] = "batch-norm-laplace"
    epsilon: float = Field(gt=0)
    sensitivity: Literal["analysis", "experiments"] = "analysis"


class BatchNormLaplace(Mechanism):
    """Each feature normalised over the batch, then Lap(S/ε): section 3.3 of paper 002.

    Features are flattened. Without mode for training the running statistics are used, and
    nothing is bounded.

    Raises
    ------
    ValueError
        For batches of one example, which have no variance.
    """

    kind: ClassVar[Literal["laplace", "gaussian"]] = "laplace"

    def __init__(self, config: BatchNormLaplaceConfig, shape: Shape, batch: int) -> None:
        super().__init__(config, shape, batch)
        if batch < 2:
            raise ValueError("batch normalisation needs batches of at least 2 examples, got 1")
        self.features = math.prod(shape)
        self.normalise = nn.BatchNorm1d(self.features, affine=False)

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (B, features): mean 0 and variance 1 over the batch, |x| ≤ √(B−1): Eq. (2)."""
        if self.training and len(tensor) < 2:
            raise ValueError("batch normalisation needs batches of at least 2 examples, got 1")
        normalised: torch.Tensor = self.normalise(tensor.flatten(1))
        return normalised

    @property
    def scale(self) -> float:
        """S/ε, for a full batch."""
        factor = 2 if self.config.sensitivity == "analysis" else 1
        return factor * math.sqrt(self.batch - 1) / float(self.config.epsilon)

    def claimed(self) -> Guarantee:
        """Return the paper's ε of one element."""
        reasons = ["one entry of one activation is replaced, all others stay"]
        if self.config.sensitivity == "experiments":
            reasons.append("S = √(N−1) as measured; by the paper's own analysis ε is twice that")
        return Guarantee("element", self.config.epsilon, reasons=tuple(reasons))

    def held(self) -> Guarantee:
        """Return F·Δ/b: an example has F features, and moves the whole batch's statistics.

        With t = x_k/√(N−1) of the replaced row k, the other rows are ``−t/√(N−1)`` each plus
        a fixed direction of length √(N(1−t²)) or less. Between any two values of row k they
        move by at most √(4+N) in L2, so √(N−1)·√(N+4) in L1, and row k by 2√(N−1).
        """
        if not self.training:
            return Guarantee(
                "record", None, reasons=("running statistics do not bound an activation",)
            )
        n = self.batch
        moved = math.sqrt(n - 1) * (2 + math.sqrt(n + 4))
        return Guarantee(
            "record",
            self.features * moved / self.scale,
            reasons=(
                f"all {self.features} features of an example are released",
                "replacing one example moves the normalised values of the whole batch",
            ),
        )

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch of zeros with an outlier, once far above and once far below."""
        above = torch.zeros(self.batch, *self.shape)
        above[0] = 1e3
        return above, -above


class ClipLaplaceConfig(ShieldConfig):
    """Settings of :class:`ClipLaplace`: ε of a record, and the L1 norm to clip to."""

    name: Literal["clip-laplace"] = "clip-laplace"
    epsilon: float = Field(gt=0)
    clip: float = Field(default=1.0, gt=0)


class ClipLaplace(Mechanism):
    """Each example clipped to L1 norm C, then Lap(2C/ε) on every coordinate."""

    kind: ClassVar[Literal["laplace", "gaussian"]] = "laplace"

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the examples, none with an L1 norm above C."""
        return clipped(tensor, self.config.clip, order=1)

    @property
    def scale(self) -> float:
        """2C/ε: two examples differ by 2C at most."""
        return 2 * float(self.config.clip) / float(self.config.epsilon)

    def claimed(self) -> Guarantee:
        """Return the same as :meth:`held`."""
        return self.held()

    def held(self) -> Guarantee:
        """Return ε of a record."""
        reasons = (f"L1 norms clipped to {self.config.clip:g}", "labels are public")
        return Guarantee("record", self.config.epsilon, reasons=reasons)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return examples with all their weight on one coordinate, of either sign."""
        return one_coordinate(self.shape, self.batch, self.config.clip)


class PixelLaplaceConfig(ShieldConfig):
    """Settings of :class:`PixelLaplace`: ε of a pixel."""

    name: Literal["pixel-laplace"] = "pixel-laplace"
    epsilon: float = Field(gt=0)


class PixelLaplace(Mechanism):
    """Noise on pixels in [0, 1], Lap(1/ε): paper 002's comparator, S = 255 of 0 … 255."""

    kind: ClassVar[Literal["laplace", "gaussian"]] = "laplace"

    def bounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the pixels, none outside [0, 1]."""
        return tensor.clamp(0, 1)

    @property
    def scale(self) -> float:
        """1/ε."""
        return 1 / float(self.config.epsilon)

    def claimed(self) -> Guarantee:
        """Return the paper's ε of one pixel."""
        reasons = ("one channel of one pixel is replaced",)
        return Guarantee("element", self.config.epsilon, reasons=reasons)

    def held(self) -> Guarantee:
        """Return ε of an image: that of a pixel times their number."""
        count = math.prod(self.shape)
        reasons = (f"all {count} values of an image are released",)
        return Guarantee("record", count * self.config.epsilon, reasons=reasons)

    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a black and a white image among black ones."""
        black = torch.zeros(self.batch, *self.shape)
        white = black.clone()
        white[0] = 1
        return black, white


def clipped(tensor: torch.Tensor, norm: float, order: int) -> torch.Tensor:
    """Return each example scaled down to a norm, if its own is larger.

    Parameters
    ----------
    tensor : Tensor of shape (B, ...)
        Finite.
    order : {1, 2}
        Of the norm, which is taken in float64.
    """
    exact = tensor.flatten(1).double()
    own = exact.norm(p=order, dim=1, keepdim=True)
    factor = (JUST_BELOW * norm / own.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1)
    scaled: torch.Tensor = exact * factor
    return scaled.to(tensor.dtype).view_as(tensor)


def one_coordinate(shape: Shape, batch: int, norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return batches whose first example has a norm on its first coordinate, of either sign."""
    above = torch.zeros(batch, *shape)
    above.view(batch, -1)[0, 0] = 2 * norm
    return above, -above
