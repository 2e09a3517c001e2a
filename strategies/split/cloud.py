"""The cloud's side of a cut model: the back, and what it learns from smashed data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.packing import concatenate, select_prefix
from pudica.models.randomness import has_random_layers, seed_random_layers
from pudica.strategies.split.config import SplitConfig


@dataclass(frozen=True)
class Chunk:
    """What a device sent: smashed data (N, *shape), labels (N,), and its batches' sizes."""

    smashed: torch.Tensor
    labels: torch.Tensor
    sizes: list[int]
    seconds: dict[str, float]

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return smashed data and labels of each batch."""
        parts = zip(self.smashed.split(self.sizes), self.labels.split(self.sizes), strict=True)
        return list(parts)


class Cloud:
    """The back with its optimiser.

    Parameters
    ----------
    seed : int
        For layers that draw, such as dropout.
    returns : bool
        Whether gradients go back to the devices.
    optimizer : callable or OptimizerConfig, optional
        In place of the settings'.
    """

    def __init__(
        self,
        back: nn.Module,
        settings: SplitConfig,
        compute: Compute,
        seed: int,
        returns: bool,
        optimizer: optimizers.Optimizing | None = None,
    ) -> None:
        self.back = compute.move_model(back)
        self.settings = settings
        self.compute = compute
        self.seed = seed
        self.returns = returns
        self.config = optimizer or settings.optimizer
        self.optimizer = optimizers.build(self.config, self.back.parameters())
        self.draws = has_random_layers(self.back)

    def learn(
        self, chunks: Mapping[str, Chunk], epoch: int, turn: int
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Take a step for each batch, on the union of what the devices sent of it.

        Returns
        -------
        loss : float
            Summed over all examples.
        gradients : dict of str to Tensor
            By device, of the mean loss with respect to what it sent, concatenated as it was
            sent. The mean is over the union where the fronts are averaged, else over the
            device's own batch.
        """
        self.begin_epoch(epoch)
        batches = {name: chunk.batches() for name, chunk in chunks.items()}
        found: dict[str, list[torch.Tensor]] = {name: [] for name in chunks}
        total = 0.0
        for number in range(max(map(len, batches.values()), default=0)):
            present = {name: each[number] for name, each in batches.items() if number < len(each)}
            loss, gradients = self._step(present, turn, number)
            total += loss
            for name, gradient in gradients.items():
                found[name].append(gradient)
        return total, {name: concatenate(parts) for name, parts in found.items() if parts}

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate of an epoch."""
        if self.optimizer:
            optimizers.begin_epoch(self.optimizer, self.config, epoch)

    def _step(
        self, batches: Mapping[str, tuple[torch.Tensor, torch.Tensor]], turn: int, number: int
    ) -> tuple[float, dict[str, torch.Tensor]]:
        counts = [len(y) for _, y in batches.values()]
        smashed = concatenate([x for x, _ in batches.values()]).to(self.compute.device)
        loss = self.step(smashed, concatenate([y for _, y in batches.values()]), turn, number)
        if smashed.grad is None:
            return loss, {}
        parts = smashed.grad.split(counts)
        if len(counts) > 1 and self.settings.front != "average":
            # A device's own mean is that over the union but for its share of it.
            shares = [count / sum(counts) for count in counts]
            parts = tuple(part / share for part, share in zip(parts, shares, strict=True))
        return loss, dict(zip(batches, parts, strict=True))

    def step(self, smashed: torch.Tensor, labels: torch.Tensor, turn: int, number: int) -> float:
        """Take a step on one batch; return its loss, summed over the examples.

        Raises
        ------
        RuntimeError
            The loss is no finite number any more.
        """
        smashed.requires_grad_(self.returns)
        # Batch norm has no variance of a single example: use the statistics learnt so far.
        self._set_training_mode(len(labels) > 1)
        with self.compute.use_threads():
            with seed_random_layers(self.draws, self.seed, turn, number):
                logits = self.compute.forward(self.back, smashed)
            loss = cross_entropy(logits, labels.to(self.compute.device))
            if not math.isfinite(value := float(loss.detach())):
                raise RuntimeError(
                    f"the loss is {value} in turn {turn}: training has diverged; lower "
                    "split.optimizer.learning_rate"
                )
            if self.optimizer:
                self.optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            if self.optimizer:
                self.optimizer.step()
        return value * len(labels)

    def _set_training_mode(self, several: bool) -> None:
        """Put the layers that learn into training mode; what is frozen stays as it is."""
        self.back.train(several)
        if self.settings.train == "last-layer":
            for layer in self.back.modules():
                layer.training = several and any(p.requires_grad for p in layer.parameters())

    @torch.no_grad()
    def classify(self, features: torch.Tensor) -> np.ndarray:
        """Return the predicted class of each example's activations, int64 of shape (N,)."""
        logits = self.compute.forward(self.back.eval(), features.to(self.compute.device))
        predictions: np.ndarray = logits.argmax(1).cpu().numpy()
        return predictions

    def packed(self) -> np.ndarray:
        """Return the back's state as one vector."""
        return packing.pack(packing.state_tensors(self.back))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the next step depends on."""
        back = {f"back/{k}": v for k, v in self.back.state_dict().items()}
        state = optimizers.optimizer_state(self.optimizer)
        return back | {f"optimizer/{k}": v for k, v in state.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`tensors` returned."""
        self.back.load_state_dict(select_prefix("back/", tensors))
        optimizers.load_optimizer_state(self.optimizer, select_prefix("optimizer/", tensors))
