"""The optimiser of all three stages, and its learning rate epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from pudica.models import optimizers
from pudica.models.errors import RequestError
from pudica.strategies.facemix.config import FacemixTraining

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Optimisation:
    """An optimiser with its schedule.

    Parameters
    ----------
    training : FacemixTraining
        Optimiser, schedule, and the epochs that it is for.
    parameters : iterable of Parameter
    factory : callable, optional
        Makes the optimiser, in place of the settings.

    Raises
    ------
    RequestError
        There is nothing to train, or the factory gives something else.
    """

    def __init__(
        self,
        training: FacemixTraining,
        parameters: Iterable[nn.Parameter],
        factory: OptimizerFactory | None,
    ) -> None:
        self.training = training
        self.is_own = factory is not None
        wanted = [p for p in parameters if p.requires_grad]
        built = factory(wanted) if factory else optimizers.build(training.optimizer, wanted)
        if not isinstance(built, torch.optim.Optimizer):
            raise RequestError(
                "optimizer: must be a torch.optim.Optimizer over what is to be trained; there are "
                f"{len(wanted)} parameters, and the optimizer is a {type(built).__name__}"
            )
        self.optimizer = built
        self._first_rates = [group["lr"] for group in built.param_groups]

    def set_rate(self, epoch: int) -> None:
        """Set the learning rate of an epoch, counted from 0."""
        if not self.is_own:
            optimizers.set_learning_rate(self.optimizer, self.training.rate(epoch))
        elif self.training.schedule == "cosine":
            share = (1 + math.cos(math.pi * epoch / self.training.epochs)) / 2
            for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
                group["lr"] = rate * share

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state; empty before its first step."""
        return optimizers.optimizer_state(self.optimizer)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a state back."""
        optimizers.load_optimizer_state(self.optimizer, state)
