"""Supervised training that can stop after any epoch and resume in another process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.models.augmentation import AUGMENTATIONS
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.optimizers import OptimizerFactory, set_learning_rate
from pudica.models.packing import select_prefix
from pudica.models.randomness import (
    has_random_layers,
    numpy_generator,
    seed_random_layers,
    torch_generator,
)

CHEAT_WEIGHT = 5.0
CHEAT_LEARNING_RATE = 0.01


class Images(Protocol):
    """What training needs from a data set."""

    @property
    def black(self) -> torch.Tensor:
        """A black pixel in the units of :meth:`batch`, or the closest value: (C, 1, 1)."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self, positions: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, C, H, W) and labels; ``change`` is applied to the raw images first."""
        ...


class TrainingConfig(BaseModel):
    """How a model is trained; the defaults are those of THEMIS's code.

    Attributes
    ----------
    epochs : int, in epochs
        How often training goes through all training images.
    batch_size : int, in images
        How many images a step of training takes.
    learning_rate : float
        The learning rate of SGD, before ``schedule`` lowers it.
    momentum : float
        The momentum of SGD.
    weight_decay : float
        The weight decay of SGD.
    schedule : {"step", "cosine"}
        How the learning rate falls. ``step`` multiplies it by ``gamma`` every ``step_size``
        epochs. ``cosine`` follows half a cosine wave down to 0 after the last epoch (SGDR without
        a restart, Loshchilov and Hutter 2017, Eq. (5)).
    step_size : int, in epochs
        ``step``: after how many epochs the learning rate falls, each time.
    gamma : float
        ``step``: the factor by which it falls.
    patience : int or None, in epochs
        Stop early after this many epochs without a better validation accuracy.
    augment : {"none", "crop-flip", "handwriting"}
        How training images are changed at random. ``crop-flip``: random crop with 4 pixels of
        black padding, and horizontal flip. ``handwriting``: strokes slanted, stretched, bent, and
        made thinner or thicker.
    augment_first : bool
        Augment before images are disguised, as only their owner can; otherwise afterwards, as a
        cloud could.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=40, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["step", "cosine"] = "step"
    step_size: int = Field(default=10, ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)
    patience: int | None = Field(default=10, ge=1)
    augment: Literal["none", "crop-flip", "handwriting"] = "none"
    augment_first: bool = False

    def learning_rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.learning_rate * float(self.gamma ** (epoch // self.step_size))


@torch.no_grad()
def predict(model: nn.Module, x: torch.Tensor, compute: Compute, batch: int = 250) -> np.ndarray:
    """Return the predicted class of each image, int64 of shape (N,)."""
    model.eval()
    parts = [
        compute.forward(model, compute.move_batch(part)).argmax(1).cpu()
        for part in torch.split(x, batch)
    ]
    return torch.cat(parts).numpy()


def accuracy(model: nn.Module, images: Images, compute: Compute, batch: int = 250) -> float:
    """Return the share of images that the model classifies correctly."""
    return count_correct(model, images, compute, batch) / len(images)


def count_correct(model: nn.Module, images: Images, compute: Compute, batch: int = 250) -> int:
    """Return the number of images that the model classifies correctly."""
    count = 0
    for start in range(0, len(images), batch):
        x, y = images.batch(np.arange(start, min(start + batch, len(images))))
        count += int((predict(model, x, compute, batch) == y.numpy()).sum())
    return count


class Training:
    """Training of one model; keeps the best epoch on validation.

    Parameters
    ----------
    model : Module
        Trained in place.
    seed : int
        Seeds the batch order, augmentation and random layers such as dropout.
    own_noise : NoiseGenerator or None
        A cheating participant's own generator, trained together with the model so that the
        model gets used to noise (the "cheating" case of the authors' code).
    optimizer : callable, optional
        Makes an optimiser of parameters, with a learning rate that stays. By default SGD by the
        settings in ``config``, with its schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        seed: int,
        compute: Compute,
        own_noise: NoiseGenerator | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        self.model = compute.move_model(model)
        self._draws = has_random_layers(self.model)
        self.config = config
        self.seed = seed
        self.compute = compute
        self.epoch = 0
        self.accuracies: list[float] = []
        self.losses: list[float] = []
        self.best: dict[str, torch.Tensor] = {}
        self._has_schedule = optimizer is None
        self.optimizer = (optimizer or self._build_sgd)(self.model.parameters())
        self.noise = own_noise and GeneratorTraining(
            own_noise.to(compute.device), CHEAT_LEARNING_RATE
        )

    def _build_sgd(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.config.learning_rate,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )

    @property
    def finished(self) -> bool:
        """Whether the schedule is over or the validation accuracy stopped improving."""
        if self.epoch >= self.config.epochs:
            return True
        if self.config.patience is None or not self.accuracies:
            return False
        since_best = self.epoch - 1 - int(np.argmax(self.accuracies))
        return since_best >= self.config.patience

    def run_epoch(self, train: Images, validation: Images) -> None:
        """Train one epoch, validate, and keep the best weights."""
        self.train_epoch(train)
        share = accuracy(self.model, validation, self.compute)
        if not self.accuracies or share > max(self.accuracies):
            self.best = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.accuracies.append(share)

    def train_epoch(self, train: Images) -> None:
        """Train one epoch; raise RequestError if the loss is no longer a finite number."""
        self._begin_epoch()
        order = numpy_generator(self.seed, "order", self.epoch).permutation(len(train))
        randomness = torch_generator(self.seed, "augment", self.epoch)
        total = 0.0
        with seed_random_layers(self._draws, self.seed, self.epoch):
            for start in range(0, len(order), self.config.batch_size):
                positions = order[start : start + self.config.batch_size]
                total += self._step(train, positions, randomness) * len(positions)
        if not math.isfinite(total):
            raise RequestError(
                f"training diverged in epoch {self.epoch + 1}, the loss is {total}; lower the "
                f"learning_rate, which is {self.config.learning_rate:g}"
            )
        self.losses.append(total / len(train))
        self.epoch += 1

    def _begin_epoch(self) -> None:
        if self._has_schedule:
            set_learning_rate(self.optimizer, self.config.learning_rate_at(self.epoch))
        self.model.train()

    def _step(self, train: Images, positions: np.ndarray, randomness: torch.Generator) -> float:
        x, y = self._batch(train, positions, randomness)
        x, y = self.compute.move_batch(x), y.to(self.compute.device)
        if self.noise:
            x = self.noise.generator(x, torch.randn(x.shape, generator=randomness).to(x.device))
            self.noise.optimizer.zero_grad()
        if len(y) == 1:
            # Batch norm has no variance for a single example: use the running statistics.
            self.model.eval()
        self.optimizer.zero_grad()
        loss = cross_entropy(self.compute.forward(self.model, x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.noise:
            gradients = [p.grad for p in self.noise.generator.parameters()]
            task = torch.stack([g.clone() for g in gradients if g is not None])
            self.noise.step(CHEAT_WEIGHT * task)
        self.model.train()
        return float(loss.detach())

    def _batch(
        self, train: Images, positions: np.ndarray, randomness: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        augment = AUGMENTATIONS.get(self.config.augment)
        if augment and self.config.augment_first:
            black = torch.zeros_like(train.black)
            return train.batch(positions, lambda plain: augment(plain, black, randomness))
        x, y = train.batch(positions)
        return (augment(x, train.black, randomness) if augment else x), y

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that the next epoch depends on, and the best weights."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for i, p in enumerate(self.model.parameters()):
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum/{i}"] = buffer
        if self.noise:
            values, steps = self.noise.pack()
            tensors |= {"noise": torch.from_numpy(values), "noise_steps": torch.tensor(steps)}
        return tensors

    def restore(
        self, tensors: dict[str, torch.Tensor], losses: list[float], accuracies: list[float]
    ) -> None:
        """Resume from earlier :meth:`tensors`, ``losses`` and ``accuracies``."""
        self.model.load_state_dict(select_prefix("model/", tensors))
        self.best = select_prefix("best/", tensors)
        momentum = select_prefix("momentum/", tensors)
        for i, p in enumerate(self.model.parameters()):
            if str(i) in momentum:
                self.optimizer.state[p]["momentum_buffer"] = momentum[str(i)].to(p.device)
        if self.noise:
            self.noise = GeneratorTraining.unpack(
                tensors["noise"].to(self.compute.device),
                int(tensors["noise_steps"]),
                self.noise.generator.bound,
                CHEAT_LEARNING_RATE,
            )
        self.losses, self.accuracies, self.epoch = list(losses), list(accuracies), len(losses)
