"""Optimisers by name, with a state that can be saved without pickling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

WITH_MOMENTUM = ("sgd", "rmsprop")
SIGNED = ("/exp_avg", "/momentum_buffer", "/grad_avg")
"""The parts of an optimiser's state that can be negative."""
_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


class OptimizerConfig(BaseModel):
    """An optimiser and its schedule.

    Attributes
    ----------
    name : {"sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"}
        Which optimiser of PyTorch it is.
    learning_rate : float
        The learning rate that training begins with.
    momentum : float
        The momentum; only for ``sgd`` and ``rmsprop``.
    weight_decay : float
        The weight decay.
    step_size : int or None, in epochs
        Every so many epochs the learning rate is multiplied by ``gamma``; None: never.
    gamma : float
        The factor for ``step_size``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0, le=10)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    step_size: int | None = Field(default=None, ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _validate_momentum(self) -> OptimizerConfig:
        if self.momentum and self.name not in WITH_MOMENTUM:
            raise ValueError(
                f"'{self.name}' has no momentum setting; allowed with {', '.join(WITH_MOMENTUM)}"
            )
        return self

    def learning_rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        decays = epoch // self.step_size if self.step_size else 0
        return self.learning_rate * self.gamma**decays


OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Optimizing = OptimizerConfig | OptimizerFactory
"""An optimiser by its settings, or anything that makes one of parameters."""


def build(
    config: Optimizing, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer | None:
    """Return the optimiser, or None if there is nothing to train."""
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        return None
    if not isinstance(config, OptimizerConfig):
        return config(wanted)
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.momentum:
        options["momentum"] = config.momentum
    return _CLASSES[config.name](wanted, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def begin_epoch(optimizer: torch.optim.Optimizer, config: Optimizing, epoch: int) -> None:
    """Set the learning rate of an epoch, counted from 0, where it follows from settings."""
    if isinstance(config, OptimizerConfig):
        set_learning_rate(optimizer, config.learning_rate_at(epoch))


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """Return an optimiser's state as tensors; empty before its first step."""
    states = optimizer.state_dict()["state"] if optimizer else {}
    return {
        f"{number}/{key}": value
        for number, state in states.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def validate_state(
    config: Optimizing, parameters: Iterable[torch.Tensor], state: Mapping[str, torch.Tensor]
) -> None:
    """Raise ValueError if no optimiser of these parameters could have this state.

    That is, if a tensor is missing, superfluous, of another shape or type, or negative although it
    is a mean of squares.
    """
    templates = [torch.nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    optimizer = build(config, templates)
    for parameter in templates:
        parameter.grad = torch.zeros_like(parameter)
    if optimizer and state:
        optimizer.step()
    wanted = optimizer_state(optimizer)
    if wanted.keys() != state.keys():
        raise ValueError(f"an optimiser's state of {sorted(state)}, not of {sorted(wanted)}")
    for name, value in state.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise ValueError(f"'{name}' of shape {tuple(value.shape)} and type {value.dtype}")
        if not name.endswith(SIGNED) and (value < 0).any():
            raise ValueError(f"'{name}' is negative")


def load_optimizer_state(
    optimizer: torch.optim.Optimizer | None, state: Mapping[str, torch.Tensor]
) -> None:
    """Load a state that :func:`optimizer_state` returned."""
    if optimizer is None:
        return
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        number, _, key = name.partition("/")
        states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
