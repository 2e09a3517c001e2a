"""What a cloud that cheats has of split learning: a device that answers whatever it is asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array

from pudica import models
from pudica.clients import protocol, shields
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import ImageSet, Splits, load_once
from pudica.clients.data.images import Positions
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.front import Front, activation_shape
from pudica.clients.shields.grid import IntegerGrid
from pudica.clients.shields.obfuscation import NoShieldConfig
from pudica.clients.split.assigned import AssignedEdge
from pudica.clients.split.training import draw_order
from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.cut import Cutter
from pudica.models.optimizers import OptimizerConfig
from pudica.models.randomness import derive

STEERING = OptimizerConfig(name="adam", learning_rate=0.005)
"""Of a front that is steered: the assignment says, which the cloud writes."""

Sent = Mapping[str, "np.ndarray | torch.Tensor"]
Ask = Callable[[str, Mapping[str, protocol.Scalar], Sent], Mapping[str, torch.Tensor]]
"""Sends a device a request: its kind, settings and arrays; returns the arrays of the reply."""
Answer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns the gradient to send back for smashed data and their labels."""


@dataclass(frozen=True)
class ActiveTarget:
    """One device of a case of split learning, to be joined anew and asked for anything.

    Attributes
    ----------
    name : str
        Of run and case.
    assignment : EdgeAssignment
        With which the device joined in that case.
    """

    name: str
    assignment: EdgeAssignment

    @cached_property
    def data(self) -> Splits:
        """The data set, of which the device has a share."""
        return load_once(self.assignment.data.model_dump_json(), self.assignment.data_seed)

    @property
    def own(self) -> ImageSet:
        """The adversary's images, which are no device's training images."""
        return self.data.test

    @property
    def images(self) -> ImageSet:
        """The device's training images, by which an attack is judged."""
        return self.assignment.share(self.data, "train")

    def make_front(self, seed: int) -> Front:
        """Return the case's front, layers and shield, with weights of a seed."""
        return make_front(self.assignment, self.data, seed)

    def in_the_clear(self) -> ActiveTarget:
        """Return the positive control: the same device without a shield."""
        shield = {"shield": NoShieldConfig()}
        return replace(self, assignment=self.assignment.model_copy(update=shield))

    @contextmanager
    def join(self, front: Front, seed: int) -> Iterator[SteeredDevice]:
        """Let a new device join as in the case, and give it a front to begin with.

        Only what the cloud chooses differs: :data:`STEERING`, and the seed of the order of batches
        and of the noise. Noise is seeded so that the attack repeats; the attack makes no use of it.
        """
        chosen = {"optimizer": STEERING, "seed": derive(seed, "device"), "noise": "seeded"}
        assignment = self.assignment.model_copy(update=chosen)
        with tempfile.TemporaryDirectory() as folder:
            edge = AssignedEdge(Vault(Path(folder) / "vault"), assignment)
            yield SteeredDevice(_talk_to(edge), assignment, len(edge.train), front)

    @property
    def compute(self) -> Compute:
        """Where the device computes."""
        return Compute(self.assignment.compute)


class SteeredDevice:
    """A device whose front is steered, by the messages that its mode has.

    Parameters
    ----------
    ask : callable
        Sends it a request.
    assignment : EdgeAssignment
        With which it has joined.
    count : int
        How many training images it has, as it said.
    front : Front
        With which it begins.

    Attributes
    ----------
    front : Front
        The cloud's, which learns from front gradients where fronts are averaged.
    epoch : int
        The next one.
    steps : int
        Batches of an epoch.
    """

    def __init__(self, ask: Ask, assignment: EdgeAssignment, count: int, front: Front) -> None:
        self.assignment, self.front = assignment, front
        self.epoch = 0
        self.steps = len(protocol.batch_sizes(count, assignment.batch_size))
        self._ask, self._count = ask, count
        self._optimizer = optimizers.build(STEERING, front.parameters())
        self._waiting: Sent = {"front": pack_front(front)}
        self._turn = -2

    def release(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch of the epoch, after bringing what waits for the device.

        Returns
        -------
        smashed : float32 Tensor of shape (B, *shape)
        labels : int64 Tensor of shape (B,)
        """
        before, self._turn = self._turn, self._turn + 2
        sent, self._waiting = self._waiting, {}
        words = {"turn": self._turn, "of": before, "epoch": self.epoch, "step": step, "count": 1}
        reply = self._ask(protocol.SMASH, words, sent)
        shield = self.front.shield
        smashed = to_values(reply["smashed"].numpy(), shield.grid).reshape(-1, *shield.shape)
        return smashed, reply["labels"].long()

    def steer(self, gradient: torch.Tensor) -> None:
        """Bring the gradient of the last batch, (B, *shape), to the front, as its mode has it."""
        if self.assignment.fronts == "average":
            self.learn(self.get_front_gradient(gradient))
        else:
            self._waiting = {"gradient": gradient}

    def get_front_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the front's gradient and buffers, packed, for a gradient of the last batch."""
        words = {"of": self._turn}
        return self._ask(protocol.FRONT_GRADIENT, words, {"gradient": gradient})["values"]

    def learn(self, values: torch.Tensor) -> None:
        """Take a step with a front gradient as the device returned it, and wait to send it."""
        gradients = [torch.empty_like(parameter) for parameter in self.front.parameters()]
        packing.unpack(values[: sum(each.numel() for each in gradients)], gradients)
        for parameter, own in zip(self.front.parameters(), gradients, strict=True):
            parameter.grad = own
        if self._optimizer:
            self._optimizer.step()
        self._waiting = {"front": pack_front(self.front)}

    def steer_epoch(self, answer: Answer) -> None:
        """Bring what an attacker answers to each batch of an epoch."""
        for step in range(self.steps):
            self.steer(answer(*self.release(step)))
        self.epoch += 1

    def release_mean(self, epochs: int, positions: Positions = slice(None)) -> torch.Tensor:
        """Return the mean of what the next epochs release of some images, (n, *shape).

        Parameters
        ----------
        positions : int64 ndarray of shape (n,), or slice
            Among the device's images, whose order of each epoch follows from the cloud's seed.
        """
        return torch.stack([self._release_epoch(positions) for _ in range(epochs)]).mean(0)

    def _release_epoch(self, positions: Positions) -> torch.Tensor:
        a = self.assignment
        order = draw_order(a.seed, a.partition, self.epoch, self._count)
        smashed = torch.cat([self.release(step)[0] for step in range(self.steps)])
        self.epoch += 1
        return smashed[np.argsort(order)[positions]]


def make_front(assignment: EdgeAssignment, data: Splits, seed: int) -> Front:
    """Return a front as an assignment has it, layers and shield, with weights of a seed."""
    model = models.build_for(
        assignment.model,
        data.shape,
        num_classes=data.num_classes,
        seed=derive(seed, "weights"),
    )
    layers, _ = Cutter(model).cut(assignment.cut)
    shape = activation_shape(layers, data.shape)
    return Front(layers, shields.build(assignment.shield, shape, assignment.batch_size))


def pack_front(front: Front) -> np.ndarray:
    """Return a front as it travels."""
    return packing.pack(packing.state_tensors(front))


def to_values(crossed: np.ndarray, grid: IntegerGrid | None) -> torch.Tensor:
    """Return activations that crossed as float32: whole steps of a grid, or floats."""
    return grid.to_values(crossed) if grid else torch.from_numpy(crossed.copy()).float()


def _talk_to(edge: AssignedEdge) -> Ask:
    """Return what hands a device requests as messages carry them, and reads its replies."""
    a = edge.assignment
    usual: dict[str, protocol.Scalar] = {
        "run": a.run,
        "case": a.case,
        "keep": 0,
        "needed": -1,
        "scale": 1.0,
    }

    def ask(
        kind: str, words: Mapping[str, protocol.Scalar], arrays: Sent
    ) -> Mapping[str, torch.Tensor]:
        packed = {key: Array(np.asarray(value, order="C")) for key, value in arrays.items()}
        request = protocol.request({**usual, **words}, **packed)
        sent = {key: torch.from_numpy(each) for key, each in protocol.arrays_of(request).items()}
        with edge.compute.use_threads():
            reply = edge.handlers[kind](edge, protocol.words_of(request), sent)
        found = protocol.arrays_of(reply)
        return {key: torch.from_numpy(array) for key, array in found.items()}

    return ask
