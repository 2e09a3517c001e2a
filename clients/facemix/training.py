"""An edge's side of FaceMix's split training: the first and the last stage of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pudica.clients import protocol
from pudica.clients.assignments import InferenceAssignment
from pudica.clients.facemix.edge import Arrays, InferenceEdge, Numbers, Tensors
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.decoys import fill_groups
from pudica.models import packing
from pudica.models.attributes import attribute_loss, compute_balancing_weights
from pudica.models.augmentation import AUGMENTATIONS
from pudica.models.randomness import (
    has_random_layers,
    numpy_generator,
    seed_random_layers,
    torch_generator,
)


@dataclass
class Step:
    """One batch, between its messages.

    Attributes
    ----------
    number : (int, int)
        Its epoch, and its place there.
    sent : Tensor
        What left, with its graph.
    secret : object
        What the shield needs to restore what comes back.
    attributes : Tensor of shape (B, A)
    gradient : ndarray or None
        What was answered of the loss.
    """

    number: tuple[int, int]
    sent: torch.Tensor
    secret: Any = field(repr=False)
    attributes: torch.Tensor
    gradient: np.ndarray | None = None


class TrainingEdge(InferenceEdge):
    """An edge that trains its stages, on images and labels of its own, before it is served.

    Parameters
    ----------
    vault, assignment
        As of :class:`~pudica.clients.facemix.edge.InferenceEdge`.
    """

    def __init__(self, vault: Vault, assignment: InferenceAssignment) -> None:
        super().__init__(vault, assignment)
        self._drawing = has_random_layers(self.ends)
        self._step: Step | None = None

    def mixtures(self, epoch: int, number: int, arrays: Tensors) -> np.ndarray:
        """Return what leaves of one training batch.

        Parameters
        ----------
        epoch, number : int
            Which batch.
        arrays : mapping of str to Tensor
            The stages as they are now, as of :meth:`adopt`.
        """
        step = self._begun(epoch, number, arrays)
        return protocol.on_wire(step.sent.detach(), self.assignment.wire)

    def loss(
        self, epoch: int, number: int, share: float, arrays: Tensors
    ) -> tuple[Numbers, np.ndarray]:
        """Return loss, and gradient on what the cloud made of a batch.

        Parameters
        ----------
        share : float
            Of this edge's images in the whole batch.
        arrays : mapping of str to Tensor
            ``outputs``; and the stages, if another process may have made the mixtures.
        """
        step = self._at(epoch, number, arrays)
        sent = (len(step.sent), *self.returned)
        came = packing.validate_tensor("outputs", arrays["outputs"], sent)
        outputs = self.compute.move_batch(came).requires_grad_()
        restored = self.shield.restore(outputs, step.secret)[: len(step.attributes)]
        with self._layers_seeded("post", epoch, number):
            logits = self.compute.forward(self.ends[1], restored)
        loss = attribute_loss(logits, step.attributes, self._class_weights)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        step.gradient = protocol.on_wire(outputs.grad, "float32")
        return {"loss": float(loss.detach()), "num-examples": len(logits)}, step.gradient

    def gradients(self, epoch: int, number: int, share: float, arrays: Tensors) -> Arrays:
        """Return the stages' gradients on a batch, and their buffers.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``gradient`` on the mixtures; in a fresh process also as of :meth:`loss`.
        """
        step = self._at(epoch, number, arrays)
        if step.gradient is None:
            self.loss(epoch, number, share, arrays)
        if step.sent.requires_grad:
            gradient = packing.validate_tensor("gradient", arrays["gradient"], tuple(step.sent.shape))
            step.sent.backward(self.compute.move_batch(gradient))  # type: ignore[no-untyped-call]
        parameters = self.ends.parameters()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        self._step = None
        return {
            "weights": packing.pack(found),
            "buffers": packing.pack(list(self.ends.buffers())),
        }

    @cached_property
    def _class_weights(self) -> torch.Tensor | None:
        if self.assignment.class_weights == "none":
            return None
        return compute_balancing_weights(torch.from_numpy(self.shares["train"].attributes))

    def _at(self, epoch: int, number: int, arrays: Tensors) -> Step:
        if self._step is None or self._step.number != (epoch, number):
            return self._begun(epoch, number, arrays)
        return self._step

    def _begun(self, epoch: int, number: int, arrays: Tensors) -> Step:
        """Compute a batch as far as it leaves, with the stages that came along."""
        a, images = self.assignment, self.shares["train"]
        self.load_stages(arrays)
        self.ends.train().zero_grad()
        rows = batch_rows(a.seed, a.partition, epoch, number, len(images), a.batch_size)
        x, _ = images.batch(rows)
        x = augmented(x, images.black, a.augment, a.seed, a.partition, epoch, number)
        # Before the stages' statistics move: a fresh process has to draw the same.
        randomness = self.randomness("batch", epoch, number)
        x = fill_groups(self.compute.move_batch(x), a.shield, randomness)
        with self._layers_seeded("pre", epoch, number):
            features = self.compute.forward(self.ends[0], x)
        sent, secret = self.shield.protect(features, randomness)
        attributes = torch.from_numpy(images.attributes[rows]).to(self.compute.device)
        self._step = Step((epoch, number), sent, secret, attributes)
        return self._step

    def _layers_seeded(self, *purpose: str | int) -> AbstractContextManager[None]:
        a = self.assignment
        return seed_random_layers(self._drawing, a.seed, a.partition, *purpose)


def batch_rows(
    seed: int, partition: int, epoch: int, number: int, images: int, size: int
) -> np.ndarray:
    """Return which images make one batch of an epoch; all but the last are full."""
    order = numpy_generator(seed, "order", partition, epoch).permutation(images)
    sizes = protocol.batch_sizes(images, size)
    if not 0 <= number < len(sizes):
        raise ValueError(f"batch {number} of an epoch of {len(sizes)} was asked for")
    start = sum(sizes[:number])
    rows: np.ndarray = order[start : start + sizes[number]]
    return rows


def augmented(
    x: torch.Tensor, black: torch.Tensor, name: str, seed: int, *place: int
) -> torch.Tensor:
    """Return a batch augmented by the draws of its own place: partition, epoch, number."""
    augment = AUGMENTATIONS.get(name)
    return augment(x, black, torch_generator(seed, "augment", *place)) if augment else x


def edge_of(vault: Vault, assignment: InferenceAssignment) -> InferenceEdge:
    """Return an edge, that trains if it is to."""
    kind = TrainingEdge if assignment.train == "split" else InferenceEdge
    return kind(vault, assignment)
