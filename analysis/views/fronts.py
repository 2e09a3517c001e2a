"""What the cloud of split learning gets of averaged fronts: their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from pudica.analysis.views.gradients import (
    LARGEST,
    MOST,
    Gradient,
    GradientsView,
    GradientTarget,
    split_batches,
)
from pudica.analysis.views.observers import DeviceObserver
from pudica.analysis.views.shielded import expected
from pudica.clients import protocol
from pudica.clients.shields.front import Front
from pudica.models import packing
from pudica.models.errors import RequestError
from pudica.strategies.core.wire_log import Exchanged

MEAN = 1000
"""The adversary's own images of which a blind guess is the mean."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FrontGradient(Gradient):
    """The gradient of a device's front, summed over the batches of a message.

    Attributes
    ----------
    at_cut : float32 Tensor of shape (B, *shape)
        The gradient at the cut that the cloud sent, of which it is made.
    """

    at_cut: torch.Tensor


@dataclass(frozen=True, eq=False)
class FrontsView(GradientsView):
    """The gradients of averaged fronts; see :class:`.GradientsView`.

    Noise is added behind the front, so that it is in no gradient but by way of the cloud's own.
    """

    model: Front

    def loss(self, gradient: Gradient, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return what goes on to the cut, times the gradient there; labels have no part in it."""
        assert isinstance(gradient, FrontGradient)
        self.model.train(not self.single)
        parts = []
        for batch in split_batches(gradient):
            activations = self.device.forward(self.model, self.device.move_batch(x[batch]))
            sent = activations if self.single else expected(self.model.shield, activations)
            parts.append((sent * gradient.at_cut[batch].to(sent.device)).sum())
            penalty = self.model.shield.penalty(self.device.move_batch(x[batch]), activations)
            if penalty is not None and not self.single:
                parts.append(penalty)
        return torch.stack(parts).sum()

    def pick(self, gradient: Gradient, row: int) -> Gradient:
        """Return what is public of one image alone; see :meth:`.GradientsView.pick`."""
        assert isinstance(gradient, FrontGradient)
        assert gradient.labels is not None
        own = slice(row, row + 1)
        labels, at_cut = gradient.labels[own], gradient.at_cut[own]
        return replace(gradient, sizes=(1,), labels=labels, at_cut=at_cut)

    def tensors(self) -> list[torch.Tensor]:
        """Return the front's tensors, parameters and buffers in the order of its state."""
        return packing.state_tensors(self.model)


@dataclass(frozen=True)
class _Turn:
    """What a device was sent and asked for, until its gradient comes."""

    turn: int
    front: torch.Tensor
    sizes: list[int]
    labels: torch.Tensor
    behind: np.ndarray


class FrontsObserver(DeviceObserver):
    """Collects the first gradients of averaged fronts while a case runs; see :class:`.Gradient`.

    Parameters
    ----------
    name : str
        Of run and case.
    case : str
    """

    def __init__(self, name: str, case: str) -> None:
        super().__init__(name, case)
        self._asked: dict[int, _Turn] = {}
        self._kept = 0
        self.gradients: list[FrontGradient] = []
        self.behind: list[np.ndarray] = []

    def _note(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        if len(self.gradients) == MOST or self._kept > LARGEST:
            return
        if exchanged.kind == protocol.SMASH and words["count"]:
            # Only fronts that are averaged, and have weights, go along with every request.
            sent = protocol.arrays_of(exchanged.request)
            if "front" in sent:
                self._note_front(exchanged, words, sent["front"])
        elif exchanged.kind == protocol.FRONT_GRADIENT:
            self._note_gradient(exchanged, words)

    def _note_front(
        self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar], front: np.ndarray
    ) -> None:
        a = self._assignments[exchanged.node]
        labels = protocol.arrays_of(exchanged.reply)["labels"]
        self._asked[a.partition] = _Turn(
            turn=int(words["turn"]),
            front=torch.from_numpy(front),
            sizes=self._sizes(a, words),
            labels=torch.from_numpy(labels).long(),
            behind=self._first_of(a.partition) + self._positions(a, words),
        )

    def _note_gradient(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        device = self._assignments[exchanged.node].partition
        asked = self._asked.pop(device)
        sent = protocol.arrays_of(exchanged.request)["gradient"]
        # Buffers come behind the gradient: what a batch did to running statistics.
        returned = protocol.arrays_of(exchanged.reply)["values"][: self._parameters]
        gradient = FrontGradient(
            node=device,
            turn=asked.turn,
            state=asked.front,
            values=torch.from_numpy(returned),
            sizes=tuple(asked.sizes),
            labels=asked.labels,
            at_cut=torch.from_numpy(sent).float() / float(words["scale"]),
        )
        self.gradients.append(gradient)
        self.behind.append(asked.behind)
        self._kept += gradient.size + sent.size

    def _first_of(self, device: int) -> int:
        return sum(len(share) for share in self._shares[:device])

    @cached_property
    def _front(self) -> Front:
        return self._make_front()

    @cached_property
    def _parameters(self) -> int:
        return sum(each.numel() for each in self._front.parameters())

    def target(self) -> GradientTarget:
        """Return what was collected.

        Raises
        ------
        RequestError
            No gradient crossed.
        """
        if not self.gradients:
            raise RequestError(f"{self.name}: no gradient of a front crossed: nothing to attack")
        train, own = self._data.train, self._data.test
        view = FrontsView(
            name=self.name,
            seen=tuple(self.gradients),
            model=self._front,
            shape=self._data.shape,
            mean=train.mean,
            std=train.std,
            blind=own.pixels(slice(0, MEAN)).mean(0),
            classes=self._data.num_classes,
            device=self._compute,
        )
        return GradientTarget(view, tuple(self._shares), tuple(self.behind))
