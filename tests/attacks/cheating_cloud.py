"""A cloud that sends one device whatever it likes, message by message, and reads the answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.analysis.views.active import SteeredDevice, make_front, pack_front
from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import DataConfig, ImageSet, Splits, load_once
from pudica.clients.shields.front import Front
from pudica.clients.split.training import draw_order
from pudica.models.compute import ComputeConfig
from pudica.models.optimizers import OptimizerConfig
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context

RUN = "cheating"


class Refused(RuntimeError):
    """The device answered with an error, whose words these are."""


class Answer(NamedTuple):
    """What a device says: arrays, measurements, and words."""

    arrays: dict[str, torch.Tensor]
    metrics: dict[str, float]
    words: dict[str, protocol.Scalar]


class CheatingCloud:
    """Joins one real device and talks to it as the protocol has it; the contents are up to you.

    Parameters
    ----------
    directory : Path
        Where the device's vault is put; one for each cloud.
    partition, partitions : int
        Which device it is, of how many.

    Attributes
    ----------
    turn : int
        Of the last batches that were asked for; a gradient is of those unless it says otherwise.
    assignment : EdgeAssignment
        With which the device joined last.
    """

    def __init__(self, directory: Path, partition: int = 0, partitions: int = 3) -> None:
        config = {"vault": str(directory / "vault")}
        self.grid = InProcessGrid(client_app, partitions, config)
        build_server_context(config)  # Flower's messages need to know who sends them
        self.node = next(n for n, p in self.grid.partition.items() if p == partition)
        self.turn = -2
        self.terms: dict[str, Any] = {
            "run": RUN,
            "data": DataConfig(name="digits"),
            "data_seed": 0,
            "partition": partition,
            "partitions": partitions,
            "compute": ComputeConfig(device="cpu"),
            "case": "main",
            "model": "cnn-wide",
            "cut": "2",
            "fronts": "private",
            "shield": {"name": "none"},
            "noise": "seeded",
            "seed": 0,
            "batch_size": 64,
            "wire": "float32",
            "optimizer": OptimizerConfig(),
        }

    # ------------------------------------------------------------------------- messages

    def join(self, turn: int = -1, **changes: Any) -> Answer:
        """Give the device an assignment: the usual one, and what is changed in it, for good."""
        self.terms |= changes
        self.assignment = EdgeAssignment(**self.terms)
        words = {"run": RUN, "assignment": self.assignment.model_dump_json(), "turn": turn}
        return self.send(protocol.JOIN, words)

    def smash(
        self,
        epoch: int = 0,
        step: int = 0,
        count: int = 1,
        turn: int | None = None,
        front: np.ndarray | None = None,
        gradient: torch.Tensor | None = None,
        **changes: protocol.Scalar,
    ) -> Answer:
        """Ask for batches of an epoch, with the gradient of the last ones; as the cloud does.

        Parameters
        ----------
        turn : int, optional
            The next one, if left out.
        front : ndarray, optional
            Packed, as of :meth:`packed`.
        changes : scalars
            Of the request's settings.

        Returns
        -------
        Answer
            ``smashed`` and ``labels``.
        """
        before, self.turn = self.turn, self.turn + 2 if turn is None else turn
        config = {"turn": self.turn, "epoch": epoch, "step": step, "count": count}
        arrays = {"front": front, "gradient": gradient}
        return self.ask(protocol.SMASH, {**config, "of": before, **changes}, arrays)

    def front_gradient(self, gradient: torch.Tensor, **changes: protocol.Scalar) -> Answer:
        """Let the device turn the last batches' gradient into its front's: ``values``, packed."""
        return self.ask(protocol.FRONT_GRADIENT, changes, {"gradient": gradient})

    def fetch_front(
        self, gradient: torch.Tensor | None = None, **changes: protocol.Scalar
    ) -> Answer:
        """Ask for the front, as if it were to be handed on: ``front``, ``optimizer/…``."""
        changes = {"turn": self.turn + 1, **changes}
        return self.ask(protocol.FRONT, changes, {"gradient": gradient})

    def evaluate(self, back: np.ndarray, part: str = "test", **changes: Any) -> Answer:
        """Ask how many images the whole model gets right; ``front`` may go along."""
        arrays = {"back": back, "front": changes.pop("front", None)}
        return self.ask(protocol.WHOLE, {"part": part, "epoch": 0, **changes}, arrays)

    def features(self, start: int, count: int, noisy: bool = True, **changes: Any) -> Answer:
        """Ask for test images' activations; ``front`` may go along."""
        arrays = {"front": changes.pop("front", None)}
        config = {"start": start, "count": count, "noisy": int(noisy), **changes}
        return self.ask(protocol.FEATURES, config, arrays)

    def count_correct(self, predictions: np.ndarray, **changes: protocol.Scalar) -> Answer:
        """Ask how many predicted classes of the test images are right."""
        return self.ask(protocol.FEATURES, changes, {"predictions": predictions})

    def ask(
        self,
        kind: str,
        config: Mapping[str, protocol.Scalar],
        arrays: Mapping[str, np.ndarray | torch.Tensor | None],
    ) -> Answer:
        """Send a request of any kind, with what every one of this run has in it."""
        usual = {"run": RUN, "case": self.assignment.case, "keep": 0, "needed": -1}
        sent = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
        return self.send(kind, {**usual, "of": self.turn, "scale": 1.0, **config}, **sent)

    def send(self, kind: str, config: Mapping[str, Any], **arrays: np.ndarray) -> Answer:
        """Send a request exactly as it is.

        Raises
        ------
        Refused
            The device answered with an error.
        """
        packed = {key: Array(np.asarray(value, order="C")) for key, value in arrays.items()}
        content = protocol.request(config, **packed)
        message = self.grid.create_message(content, kind, self.node, "")
        (reply,) = self.grid.send_and_receive([message])
        if reply.has_error():
            raise Refused(reply.error.reason)
        return decoded(reply.content)

    def steer(self, front: Front) -> SteeredDevice:
        """Return the device, to be steered from a front on."""
        return SteeredDevice(
            lambda kind, config, arrays: self.ask(kind, config, arrays).arrays,
            self.assignment,
            len(self.private),
            front,
        )

    # ------------------------------------------------------------- what the cloud has

    def front(self, seed: int) -> Front:
        """Return a front as the assignment has it, layers and shield, with weights of a seed."""
        return make_front(self.assignment, self.data, seed)

    @staticmethod
    def packed(front: Front) -> np.ndarray:
        """Return a front as it travels."""
        return pack_front(front)

    def batches(self) -> list[int]:
        """Return the sizes of the device's batches, which make an epoch."""
        return protocol.batch_sizes(len(self.private), self.assignment.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return in which order the device's images come in an epoch: the cloud drew the seed."""
        assignment = self.assignment
        return draw_order(assignment.seed, assignment.partition, epoch, len(self.private))

    # ---------------------------------------------------------------- to judge an attack

    @property
    def data(self) -> Splits:
        """The data set, of which the device has a share."""
        return load_once(self.assignment.data.model_dump_json(), self.assignment.data_seed)

    @property
    def private(self) -> ImageSet:
        """The device's training images, which no cloud has: the truth to compare with."""
        return self.assignment.share(self.data, "train")


def decoded(content: RecordDict) -> Answer:
    """Return what a reply says."""
    arrays = {name: torch.from_numpy(a) for name, a in protocol.arrays_of(content).items()}
    return Answer(arrays, protocol.numbers_of(content), protocol.words_of(content))
