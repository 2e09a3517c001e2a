"""An edge's side of FaceMix's split training: the first and the last stage of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pudica.clients import protocol
from pudica.clients.facemix.images import read_batch
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

if TYPE_CHECKING:
    from pudica.clients.facemix.edge import InferenceEdge
    from pudica.clients.facemix.stages import Tensors

Numbers = dict[str, int | float]
Gradients = dict[str, np.ndarray]


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


class EdgeTraining:
    """How an edge trains its stages, on images and labels of its own, before it is served.

    Parameters
    ----------
    edge : InferenceEdge
    """

    def __init__(self, edge: InferenceEdge) -> None:
        self.edge = edge
        self._drawing = has_random_layers(edge.ends)
        self._step: Step | None = None

    def mixtures(self, epoch: int, number: int, arrays: Tensors) -> np.ndarray:
        """Return what leaves of one training batch.

        Parameters
        ----------
        epoch, number : int
            Which batch.
        arrays : mapping of str to Tensor
            The stages as they are now, as of :meth:`.InferenceEdge.adopt`.
        """
        step = self._begin(epoch, number, arrays)
        return protocol.on_wire(step.sent.detach(), self.edge.terms.wire)

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
        edge, step = self.edge, self._at(epoch, number, arrays)
        came = edge.check_outputs(arrays["outputs"], len(step.sent))
        outputs = edge.compute.move_batch(came).requires_grad_()
        restored = edge.shield.restore(outputs, step.secret)[: len(step.attributes)]
        with self._seed_layers("post", epoch, number):
            logits = edge.compute.forward(edge.ends[1], restored)
        answers = logits.shape[1] // step.attributes.shape[1]
        if int(step.attributes.max()) >= answers:
            raise ValueError(f"the model has {answers} answers, and there is a label beyond")
        loss = attribute_loss(logits, step.attributes, self._class_weights(answers))
        (loss * share).backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        step.gradient = protocol.on_wire(outputs.grad, "float32")
        return {"loss": float(loss.detach()), "num-examples": len(logits)}, step.gradient

    def gradients(self, epoch: int, number: int, share: float, arrays: Tensors) -> Gradients:
        """Return the stages' gradients on a batch, and their buffers.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``gradient`` on the mixtures; in a fresh process also as of :meth:`loss`.
        """
        edge, step = self.edge, self._at(epoch, number, arrays)
        if step.gradient is None:
            self.loss(epoch, number, share, arrays)
        if step.sent.requires_grad:
            shape = tuple(step.sent.shape)
            gradient = packing.validate_tensor("gradient", arrays["gradient"], shape)
            step.sent.backward(edge.compute.move_batch(gradient))  # type: ignore[no-untyped-call]
        parameters = edge.ends.parameters()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        self._step = None
        return {
            "weights": packing.pack(found),
            "buffers": packing.pack(list(edge.ends.buffers())),
        }

    def _class_weights(self, answers: int) -> torch.Tensor | None:
        if self.edge.terms.class_weights == "none":
            return None
        return compute_balancing_weights(self._all_attributes, answers)

    @cached_property
    def _all_attributes(self) -> torch.Tensor:
        return torch.from_numpy(self.edge.shares["train"].attributes)

    def _at(self, epoch: int, number: int, arrays: Tensors) -> Step:
        if self._step is None or self._step.number != (epoch, number):
            return self._begin(epoch, number, arrays)
        return self._step

    def _begin(self, epoch: int, number: int, arrays: Tensors) -> Step:
        """Compute a batch as far as it leaves, with the stages that came along."""
        edge, terms = self.edge, self.edge.terms
        images = edge.shares["train"]
        edge.load_stages(arrays)
        edge.ends.train().zero_grad()
        rows = batch_rows(edge.seed, edge.number, epoch, number, len(images), terms.batch_size)
        x, attributes = read_batch(images, rows)
        x = augment_batch(x, images.black, terms.augment, edge.seed, edge.number, epoch, number)
        # Before the stages' statistics move: a fresh process has to draw the same.
        randomness = edge.randomness("batch", epoch, number)
        x = fill_groups(edge.compute.move_batch(x), edge.mixing, randomness)
        with self._seed_layers("pre", epoch, number):
            features = edge.compute.forward(edge.ends[0], x)
        sent, secret = edge.shield.protect(features, randomness)
        self._step = Step((epoch, number), sent, secret, attributes.to(edge.compute.device))
        return self._step

    def _seed_layers(self, *purpose: str | int) -> AbstractContextManager[None]:
        return seed_random_layers(self._drawing, self.edge.seed, self.edge.number, *purpose)


def batch_rows(
    seed: int, place: int, epoch: int, number: int, images: int, size: int
) -> np.ndarray:
    """Return which images make one batch of an epoch; all but the last are full."""
    order = numpy_generator(seed, "order", place, epoch).permutation(images)
    sizes = protocol.batch_sizes(images, size)
    if not 0 <= number < len(sizes):
        raise ValueError(f"batch {number} of an epoch of {len(sizes)} was asked for")
    start = sum(sizes[:number])
    rows: np.ndarray = order[start : start + sizes[number]]
    return rows


def augment_batch(
    x: torch.Tensor, black: torch.Tensor, name: str, seed: int, *place: int
) -> torch.Tensor:
    """Return a batch augmented by the draws of its own place: edge, epoch, number."""
    augment = AUGMENTATIONS.get(name)
    return augment(x, black, torch_generator(seed, "augment", *place)) if augment else x
