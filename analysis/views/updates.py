"""What the cloud of DLMT gets of owners that train by themselves: updates of their models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pudica import models
from pudica.analysis.views.gradients import (
    LARGEST,
    MOST,
    Gradient,
    GradientsView,
    GradientTarget,
    split_batches,
)
from pudica.analysis.views.observers import CaseObserver
from pudica.clients import protocol
from pudica.clients.assignments import OwnerAssignment
from pudica.clients.data import ImageSet
from pudica.clients.dlmt.assigned import AssignedOwner
from pudica.clients.runtime.vault import MemoryVault
from pudica.models.errors import RequestError
from pudica.models.training import TrainingConfig
from pudica.strategies.core.wire_log import Exchanged


@dataclass(frozen=True, eq=False, kw_only=True)
class Update(Gradient):
    """An owner's update, and the mean gradient that it stands for, by :func:`average_gradient`.

    Attributes
    ----------
    returned : float32 Tensor of shape (s,)
        Weights and buffers that came back, packed.
    steps : int
        Of the owner's optimiser in between.
    """

    returned: torch.Tensor
    steps: int


@dataclass(frozen=True, eq=False)
class UpdatesView(GradientsView):
    """Updates of whole models; see :class:`.GradientsView`.

    Where owners augment images, gradients are taken as if they were the images before that.
    """

    def loss(self, gradient: Gradient, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over all batches, as if weights stayed as they were."""
        parts = []
        for batch in split_batches(gradient):
            # As in training, where a single image has no variance for batch norm.
            self.model.train(not self.single and len(labels[batch]) > 1)
            logits = self.device.forward(self.model, self.device.move_batch(x[batch]))
            parts.append(cross_entropy(logits, labels[batch]))
        return torch.stack(parts).mean()

    def pick(self, gradient: Gradient, row: int) -> Gradient:  # noqa: ARG002
        """Return what is public of one image alone; see :meth:`.GradientsView.pick`."""
        assert isinstance(gradient, Update)
        return replace(gradient, sizes=(1,), steps=1)

    def tensors(self) -> list[torch.Tensor]:
        """Return the model's parameters, then its buffers."""
        return [*self.model.parameters(), *self.model.buffers()]


class UpdatesObserver(CaseObserver[OwnerAssignment]):
    """Collects the first updates of owners while a case runs.

    Parameters
    ----------
    name : str
        Of run and case.
    case : str
    """

    def __init__(self, name: str, case: str) -> None:
        super().__init__(name, case)
        self._normalisation = torch.zeros(2, 0)
        self._kept = 0
        self.updates: list[Update] = []

    def _note(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        if exchanged.kind == protocol.ROUND:
            self._note_update(exchanged, int(words["round"]))

    def _note_update(self, exchanged: Exchanged, number: int) -> None:
        if len(self.updates) == MOST or self._kept > LARGEST:
            return
        a = self._assignments[exchanged.node]
        sent = protocol.arrays_of(exchanged.request)
        self._normalisation = torch.from_numpy(sent["normalisation"])
        before, after = (_pack(each) for each in (sent, protocol.arrays_of(exchanged.reply)))
        parameters = len(sent["weights"])
        sizes = batch_sizes(len(self._shares[a.partition]), a.training.batch_size)
        each = rates(a, number, len(sizes))
        update = Update(
            node=a.partition,
            turn=number,
            state=before,
            values=average_gradient(before[:parameters], after[:parameters], a.training, each),
            sizes=tuple(sizes),
            returned=after,
            steps=len(each),
        )
        self.updates.append(update)
        self._kept += update.size + len(after)

    # ---------------------------------------------------------------- what is behind it

    @cached_property
    def _owners(self) -> list[AssignedOwner]:
        each = range(self._any.partitions)
        places = [self._any.model_copy(update={"partition": number}) for number in each]
        return [AssignedOwner(MemoryVault(), place) for place in places]

    @cached_property
    def _shares(self) -> list[ImageSet]:
        return [owner.disguised_images("train") for owner in self._owners]

    def target(self) -> GradientTarget:
        """Return what was collected; RequestError if no update crossed."""
        if not self.updates:
            raise RequestError(f"{self.name}: no update of a model crossed: nothing to attack")
        data, compute = self._owners[0].data, self._compute
        model = models.build_for(self._any.model, data.shape, num_classes=data.num_classes)
        mean, std = self._normalisation[:, :, None, None]
        view = UpdatesView(
            name=self.name,
            seen=tuple(self.updates),
            model=compute.move_model(model),
            shape=data.shape,
            mean=mean,
            std=std,
            # Without the key it has no disguised image of its own, but knows the mean of all.
            blind=mean.expand(data.shape),
            classes=data.num_classes,
            device=compute,
        )
        ends = list(accumulate(map(len, self._shares), initial=0))
        behind = tuple(np.arange(ends[u.node], ends[u.node + 1]) for u in self.updates)
        return GradientTarget(view, tuple(self._shares), behind)


def _pack(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([arrays["weights"], arrays["buffers"]]))


def batch_sizes(count: int, size: int) -> list[int]:
    """Return the sizes of the batches of an epoch of :class:`.Training`."""
    return [size] * (count // size) + ([count % size] if count % size else [])


def rates(a: OwnerAssignment, number: int, batches: int) -> list[float]:
    """Return the learning rate of each step of a round, counted from 0."""
    epochs = range(number * a.local_epochs, (number + 1) * a.local_epochs)
    return [a.training.learning_rate_at(epoch) for epoch in epochs for _ in range(batches)]


def average_gradient(
    sent: torch.Tensor, returned: torch.Tensor, training: TrainingConfig, rates: list[float]
) -> torch.Tensor:
    """Return the gradient that would have led to an update if it were the same in each step.

    With SGD from rest and momentum m, the velocity after t steps is g·(1 − mᵗ)/(1 − m); weight
    decay is part of g, and taken off. After a single step that is the batch's gradient exactly,
    but for rounding. Momentum that an owner kept from an earlier round is taken for gradient.

    Parameters
    ----------
    sent, returned : Tensor of shape (p,)
        Weights before and after.
    rates : list of float
        The learning rate of each step.
    """
    m = training.momentum
    moved = sum(rate * (1 - m**t) / (1 - m) for t, rate in enumerate(rates, 1))
    return (sent - returned) / moved - training.weight_decay * sent
