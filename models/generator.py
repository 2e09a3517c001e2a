"""THEMIS's noise generator: one independent Gaussian per input element."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.models.compute import Compute


class NoiseGenerator(nn.Module):
    """Noise ``r = μ + σ·e`` with ``σ = (1 + tanh ρ)/2 · M`` and ``e ~ N(0, 1)``.

    Lines 5 to 7 of Algorithm 1 of THEMIS.

    Parameters
    ----------
    parameters : Tensor of shape (2, C, H, W)
        μ and ρ, in the units of the model's input.
    bound : float
        M, the upper bound of σ, in the same units.
    """

    def __init__(self, parameters: torch.Tensor, bound: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(parameters[0].clone())
        self.rho = nn.Parameter(parameters[1].clone())
        self.bound = bound

    @classmethod
    def untrained(
        cls, shape: tuple[int, int, int], bound: float, generator: torch.Generator
    ) -> NoiseGenerator:
        """Return an untrained generator: μ ~ N(0, 0.2²), ρ ~ N(0, 1), as in the authors' code."""
        draws = torch.randn((2, *shape), generator=generator)
        draws[0] *= 0.2
        return cls(draws, bound)

    def sigma(self) -> torch.Tensor:
        """Return σ, of shape (C, H, W)."""
        return (1 + torch.tanh(self.rho)) / 2 * self.bound

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Return the noisy images ``x + μ + σ·e``; e is (1, C, H, W) for one noise a batch."""
        return x + (self.mu + self.sigma() * e)

    def penalty(self) -> torch.Tensor:
        """Return the first term of Eq. (2), ``−log mean σ²``."""
        return -torch.log(self.sigma().square().mean())

    def pack(self) -> np.ndarray:
        """Return μ and ρ as one float32 array of shape (2, C, H, W)."""
        return torch.stack([self.mu.detach(), self.rho.detach()]).cpu().numpy()

    def task_gradient(
        self,
        model: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor,
        e: torch.Tensor,
        compute: Compute,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of one model's cross-entropy on noisy images, and that loss.

        The second term of Eq. (2) for a single f, averaged over the batch; with respect to μ and
        ρ, (2, C, H, W).
        """
        loss = cross_entropy(compute.forward(model, self(x, e)), y)
        return torch.stack(torch.autograd.grad(loss, (self.mu, self.rho))), loss.detach()


class GeneratorTraining:
    """A generator and its Adam optimiser; the state of both can be sent between nodes."""

    def __init__(self, generator: NoiseGenerator, learning_rate: float) -> None:
        self.generator = generator
        self.optimizer = torch.optim.Adam([generator.mu, generator.rho], lr=learning_rate)

    def step(self, task_gradient: torch.Tensor) -> None:
        """Take one Adam step on Eq. (2).

        ``task_gradient``, (2, C, H, W), is that of the second term, already weighted by λ.
        """
        self.optimizer.zero_grad()
        self.generator.penalty().backward()  # type: ignore[no-untyped-call]
        for parameter, gradient in zip(self.generator.parameters(), task_gradient, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.optimizer.step()

    def pack(self) -> tuple[np.ndarray, int]:
        """Return everything that the next step depends on, and the number of steps taken.

        That is a float32 array of shape (6, C, H, W): μ, ρ, Adam's first moments of both, its
        second moments of both.
        """
        parameters = [p.detach() for p in self.generator.parameters()]
        states = [self.optimizer.state.get(p, {}) for p in self.generator.parameters()]
        moments = [
            state.get(key, torch.zeros_like(p))
            for key in ("exp_avg", "exp_avg_sq")
            for state, p in zip(states, parameters, strict=True)
        ]
        steps = int(states[0].get("step", 0))
        return torch.stack([*parameters, *moments]).cpu().numpy(), steps

    @classmethod
    def unpack(
        cls, values: torch.Tensor, steps: int, bound: float, learning_rate: float
    ) -> GeneratorTraining:
        """Rebuild a training from what :meth:`pack` returned."""
        training = cls(NoiseGenerator(values[:2], bound), learning_rate)
        if steps:
            for i, parameter in enumerate(training.generator.parameters()):
                training.optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps)),
                    "exp_avg": values[2 + i].clone(),
                    "exp_avg_sq": values[4 + i].clone(),
                }
        return training
