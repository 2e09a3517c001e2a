"""One deployed device with a ``node.yaml``, and a cloud that sends it whatever it likes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cheating_cloud import Answer, CheatingCloud, Refused, decoded
from flwr.app import Array, Context, RecordDict
from node_files import node_file

import pudica.clients.app
from pudica import models
from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import ImageSet, Part
from pudica.clients.runtime.odometer import Odometer, anchor_of
from pudica.clients.runtime.vault import Vault, deployed_lasting
from pudica.models import packing
from pudica.models.cut import Cutter

STRICTEST: dict[str, Any] = {
    "shield": {"name": "clip-gaussian", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0},
    "fronts": ["frozen"],
    "cut": "0.2",
    "releases": 1,
}
DEFAULT: dict[str, Any] = {"shield": {"name": "clip-gaussian", "epsilon": 3.0}}
"""What a participant must say at least."""
SETTINGS = {"strictest": STRICTEST, "default": DEFAULT}


class NodeUnderAttack(CheatingCloud):
    """A deployed device of split learning, with the digits as its own images.

    Each message finds a fresh process, or with probability ``forgets``: nothing but the node's
    disk is remembered then.

    Parameters
    ----------
    directory : Path
        The node's folder; ``XDG_STATE_HOME`` must lead to a folder of the test's.
    settings
        Of ``node.yaml``.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(directory, partitions=1)
        self.directory = directory
        self.run = "first"
        self.agreed: dict[str, EdgeAssignment] = {}
        self.forgets, self.random = 1.0, random.Random(0)
        directory.mkdir(parents=True, exist_ok=True)
        self.settings(**settings)
        self.terms |= {
            "model": "cnn-separable",
            "cut": "0.2",
            "fronts": "frozen",
            "shield": STRICTEST["shield"],
            "noise": "secret",
            "reports": {"test": {"count": 1, "epsilon": 0.5}},
        }

    def settings(self, **settings: Any) -> None:
        """Write ``node.yaml``."""
        own = {"name": "ann", "systems": ["split"], "data": {"name": "digits"}}
        path = node_file(self.directory / "node.yaml", **{**own, **settings})
        place = {"node": str(path), "partition-id": 0, "num-partitions": 1}
        self.context = Context(1, self.node, place, RecordDict(), {})

    def join(self, turn: int = -1, **changes: Any) -> Answer:
        """Give the device an assignment of the run that is on: what is changed in it, once."""
        usual, before = dict(self.terms), getattr(self, "assignment", None)
        try:
            answer = super().join(turn, **{"run": self.run, **changes})
        except Refused:
            if before:
                self.assignment = before
            raise
        finally:
            self.terms = usual
        self.agreed[self.run] = self.assignment
        return answer

    def send(self, kind: str, config: Mapping[str, Any], **arrays: np.ndarray) -> Answer:
        """Send a request; see :meth:`CheatingCloud.send`."""
        if self.random.random() < self.forgets:
            pudica.clients.app._nodes.clear()
        packed = {key: Array(np.asarray(value, order="C")) for key, value in arrays.items()}
        content = protocol.request({**config, "run": self.run}, **packed)
        message = self.grid.create_message(content, kind, self.node, "")
        try:
            return decoded(client_app(message, self.context).content)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    def back(self) -> np.ndarray:
        """Return the layers behind the cut, as they travel."""
        channels, side, _ = self.data.shape
        model = models.build(
            self.assignment.model,
            num_classes=self.data.num_classes,
            channels=channels,
            image_size=side,
        )
        return packing.pack(packing.state_tensors(Cutter(model).cut(self.assignment.cut)[1]))

    def held_out(self, part: Part) -> ImageSet:
        """Return the device's validation or test images."""
        return self.assignment.share(self.data, part)

    def try_smash(self, **request: Any) -> np.ndarray | None:
        """Return what the device sends of its first batch; None if it refuses."""
        try:
            return self.smash(**request).arrays["smashed"].numpy()
        except Refused:
            return None

    @property
    def lasting(self) -> Path:
        """Where the node keeps what outlives its runs."""
        return deployed_lasting(self.directory / "vault")

    def odometer(self) -> Odometer:
        """Return the node's record."""
        return Odometer(Vault(self.lasting, self.lasting), anchor_of(self.lasting))
