"""An edge's side of FaceMix's split training: the first and the last stage of a batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.facemix.images import read_batch
from pudica.clients.runtime.role import Arrays, Config
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


@dataclass
class Step:
    """One batch, between its messages."""

    number: tuple[int, int]
    """Its epoch, and its number there."""
    sent: torch.Tensor
    """With its graph."""
    secret: Any = field(repr=False)
    """What the shield needs to restore what comes back."""
    attributes: torch.Tensor
    """(B, A)."""
    has_loss: bool = False
    """Whether gradients of the last stage have been computed."""


class EdgeTraining:
    """How an edge trains its stages, on images and labels of its own, before it is served.

    Requests say ``epoch`` and ``number`` of a batch, and the ``share`` of this edge's images in it.
    The stages come with a request if another process may have made the mixtures.

    Parameters
    ----------
    edge : InferenceEdge
    """

    def __init__(self, edge: InferenceEdge) -> None:
        self.edge = edge
        self._draws = has_random_layers(edge.ends)
        self._step: Step | None = None

    def send_mixtures(self, config: Config, arrays: Arrays) -> RecordDict:
        """Compute a batch, with the stages that came, as far as it leaves."""
        step = self._begin(config, arrays)
        mixtures = protocol.on_wire(step.sent.detach(), self.edge.terms.wire)
        return protocol.reply({}, mixtures=mixtures)

    def send_loss(self, config: Config, arrays: Arrays) -> RecordDict:
        """Return loss, and gradient on ``outputs``, what the cloud made of a batch."""
        edge, step = self.edge, self._resume(config, arrays)
        received = edge.check_outputs(arrays["outputs"], len(step.sent))
        outputs = edge.compute.move_batch(received).requires_grad_()
        restored = edge.shield.restore(outputs, step.secret)[: len(step.attributes)]
        with self._seed_layers("post", config):
            logits = edge.compute.forward(edge.ends[1], restored)
        answers = logits.shape[1] // step.attributes.shape[1]
        if int(step.attributes.max()) >= answers:
            raise ValueError(f"the model has {answers} answers, and there is a label beyond")
        loss = attribute_loss(logits, step.attributes, self._class_weights(answers))
        (loss * config["share"]).backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        step.has_loss = True
        numbers = {"loss": float(loss.detach()), "num-examples": len(logits)}
        return protocol.reply(numbers, gradient=protocol.on_wire(outputs.grad, "float32"))

    def send_gradients(self, config: Config, arrays: Arrays) -> RecordDict:
        """Return the stages' gradients on a batch, and their buffers.

        ``gradient`` is that on the mixtures; for a fresh process ``outputs`` come again, too.
        """
        edge, step = self.edge, self._resume(config, arrays)
        if not step.has_loss:
            self.send_loss(config, arrays)
        if step.sent.requires_grad:
            shape = tuple(step.sent.shape)
            gradient = packing.validate_tensor("gradient", arrays["gradient"], shape)
            step.sent.backward(edge.compute.move_batch(gradient))  # type: ignore[no-untyped-call]
        parameters = edge.ends.parameters()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        self._step = None
        buffers = packing.pack(list(edge.ends.buffers()))
        return protocol.reply({}, weights=packing.pack(gradients), buffers=buffers)

    def _class_weights(self, answers: int) -> torch.Tensor | None:
        if self.edge.terms.class_weights == "none":
            return None
        attributes = torch.from_numpy(self.edge.shares["train"].attributes)
        return compute_balancing_weights(attributes, answers)

    def _resume(self, config: Config, arrays: Arrays) -> Step:
        if self._step is None or self._step.number != (config["epoch"], config["number"]):
            return self._begin(config, arrays)
        return self._step

    def _begin(self, config: Config, arrays: Arrays) -> Step:
        edge, terms = self.edge, self.edge.terms
        images, batch = edge.shares["train"], (config["epoch"], config["number"])
        edge.load_stages(arrays)
        edge.ends.train().zero_grad()
        rows = batch_rows(edge.seed, edge.number, *batch, len(images), terms.batch_size)
        x, attributes = read_batch(images, rows)
        x = augment_batch(x, images.black, terms.augment, edge.seed, edge.number, *batch)
        # Before the stages' statistics move: a fresh process has to draw the same.
        randomness = edge.randomness("batch", *batch)
        x = fill_groups(edge.compute.move_batch(x), edge.mixing, randomness)
        with self._seed_layers("pre", config):
            features = edge.compute.forward(edge.ends[0], x)
        sent, secret = edge.shield.protect(features, randomness)
        self._step = Step(batch, sent, secret, attributes.to(edge.compute.device))
        return self._step

    def _seed_layers(self, stage: str, config: Config) -> AbstractContextManager[None]:
        purpose = self.edge.number, stage, config["epoch"], config["number"]
        return seed_random_layers(self._draws, self.edge.seed, *purpose)


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
