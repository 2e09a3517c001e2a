"""Local training by DP-SGD; gradients of single examples are Opacus's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.clients.shields.base import draw_noise
from pudica.clients.shields.dp_sgd import DpSgdConfig, count_steps
from pudica.models import zoo
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, temporary_seed
from pudica.models.training import Images, Training

MISSING = "dp: Opacus is not installed here; pip install 'pudica[opacus]'"


def validate_private_model(model: nn.Module) -> None:
    """Raise RequestError unless Opacus is there and DP-SGD can train this model."""
    try:
        from opacus.validators import ModuleValidator
    except ImportError as error:
        raise RequestError(MISSING) from error
    training = model.training
    errors = ModuleValidator.validate(model.train(), strict=False)
    model.train(training)
    buffers = [name for name, _ in model.named_buffers()]
    if errors or buffers:
        problem = f"buffers ({buffers[0]}) would leave without noise" if buffers else errors[0]
        raise RequestError(
            f"dp: this model can't be trained by DP-SGD: {problem}; without batch norm are "
            f"{', '.join(zoo.names_without_buffers())}"
        )


@contextmanager
def _per_example_gradients(model: nn.Module) -> Iterator[Any]:
    """Give a model's backward pass a gradient for each example, within the context."""
    from opacus.grad_sample import GradSampleModule

    # Opacus's hooks see outputs as views, which no layer may change in place.
    in_place = [layer for layer in model.modules() if getattr(layer, "inplace", False) is True]
    for layer in in_place:
        layer.inplace = False  # type: ignore[assignment]
    # Of channels-last images Opacus's own rule for convolutions computes wrong gradients.
    wrapped = GradSampleModule(model, loss_reduction="sum", force_functorch=True)
    try:
        with warnings.catch_warnings():
            # The images need no gradients, which PyTorch warns of.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            yield wrapped
    finally:
        wrapped.to_standard_module()
        for layer in in_place:
            layer.inplace = True  # type: ignore[assignment]


class PrivateTraining(Training):
    """Training whose steps are those of DP-SGD.

    Parameters
    ----------
    *arguments, **settings
        As of :class:`.Training`.
    dp : DpSgdConfig
    multiplier : float
        The noise's standard deviation over the clipping norm.
    draw : callable
        Returns the source of an epoch's batches and noise, by its number.
    """

    def __init__(
        self,
        *arguments: Any,
        dp: DpSgdConfig,
        multiplier: float,
        draw: Callable[[int], Randomness],
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        validate_private_model(self.model)
        self.dp, self.multiplier, self.draw = dp, multiplier, draw

    def train_epoch(self, train: Images) -> None:
        """Train one epoch; raise RequestError if the loss is no longer a finite number."""
        self._begin_epoch()
        randomness, total, seen = self.draw(self.epoch), 0.0, 0
        rate = min(1.0, self.config.batch_size / len(train))
        # Augmentation and dropout are drawn by places in a batch, which move with a record.
        coins = int.from_bytes(randomness.bytes(7), "little")
        generator = torch.Generator().manual_seed(coins)
        with temporary_seed(coins), _per_example_gradients(self.model) as model:
            private = self._build_optimizer(rate * len(train))
            for _ in range(count_steps(len(train), self.config.batch_size)):
                drawn = np.flatnonzero(randomness.random((len(train),)) < rate)
                total += self._backward(model, train, drawn, generator)
                self._take_step(private, rate * len(train), randomness)
                seen += len(drawn)
        self._end_epoch(total, max(1, seen))

    def _build_optimizer(self, expected: float) -> Any:
        from opacus.optimizers import DPOptimizer

        # Only its clipping is used, so its own noise is left out.
        return DPOptimizer(
            self.optimizer,
            noise_multiplier=0.0,
            max_grad_norm=self.dp.clip,
            expected_batch_size=expected,
        )

    def _backward(
        self, model: Any, train: Images, drawn: np.ndarray, generator: torch.Generator
    ) -> float:
        """Leave each example's gradient with the parameters; return the sum of losses."""
        if not len(drawn):
            for parameter in model.parameters():
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            return 0.0
        x, y = self._batch(train, drawn, generator)
        x, y = self.compute.move_batch(x), y.to(self.compute.device)
        loss = cross_entropy(self.compute.forward(model, x), y, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _take_step(self, private: Any, expected: float, randomness: Randomness) -> None:
        private.clip_and_accumulate()
        scale = self.multiplier * self.dp.clip
        for parameter in private.params:
            # Of the seed of PyTorch's generator, which Opacus draws from, only 32 bits count.
            noise = draw_noise("gaussian", tuple(parameter.shape), scale, randomness)
            total = parameter.summed_grad + noise.to(parameter.device)
            parameter.grad = total.view_as(parameter) / expected
        self.optimizer.step()
        private.zero_grad(set_to_none=True)

    def _end_epoch(self, total: float, seen: int) -> None:
        if not math.isfinite(total):
            raise RequestError(
                f"training diverged in epoch {self.epoch + 1}; lower the learning_rate, which is "
                f"{self.config.learning_rate:g}"
            )
        self.losses.append(total / seen)
        self.epoch += 1
