"""An edge as an experiment assigns it: a model of the zoo, cut; data read by its settings."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import get_args

import numpy as np
from torch import nn

from pudica import models
from pudica.clients import shields
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import ImageSet, Part, Splits, load_once
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.front import Front, activation_shape
from pudica.clients.split.edge import Edge
from pudica.clients.split.holder import Terms, hash_layers
from pudica.clients.split.releases import EdgeReleases
from pudica.models.compute import Compute
from pudica.models.cut import Cutter


@lru_cache(maxsize=2)
def _trace(model: str, classes: int, shape: tuple[int, int, int]) -> Cutter:
    """Return a traced model, shared by the devices of one process."""
    return Cutter(models.build_for(model, shape, num_classes=classes))


def build_front(assignment: EdgeAssignment, data: Splits) -> Front:
    """Return a front with its shield, with any weights, for images of the data's shape."""
    cutter = _trace(assignment.model, data.num_classes, data.shape)
    # A copy: the traced model is shared with the other devices of this process.
    layers = copy.deepcopy(cutter.cut(assignment.cut)[0])
    shape = activation_shape(layers, data.shape)
    return Front(layers, shields.build(assignment.shield, shape, assignment.batch_size))


class AssignedEdge(Edge):
    """An edge whose model, data and shield an experiment names.

    Its shield belongs to the front: it travels with it, and its statistics are the cloud's, too.
    """

    vault: Vault
    releases: EdgeReleases

    def __init__(self, vault: Vault, assignment: EdgeAssignment) -> None:
        a = assignment
        self.vault = vault
        self.assignment = a
        self.compute = Compute(a.compute)
        self.data: Splits = load_once(a.data.model_dump_json(), a.data_seed)
        self.train = self.images("train")
        front = build_front(a, self.data)
        self.releases = EdgeReleases(vault, a, self.data, front.shield)
        terms = Terms(
            a.case, a.fronts, a.batch_size, a.wire, a.noise, a.seed, a.partition, a.optimizer
        )
        self._take_up(front, front, terms, a.fingerprint())

    @property
    def label(self) -> str:
        """How messages name this device and where its model is cut."""
        return f"device-{self.assignment.partition}: the activation after '{self.assignment.cut}'"

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud is told of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "reports": int(self.assignment.report),
            **{part: len(self.images(part)) for part in get_args(Part)},
        }

    def images(self, part: Part) -> ImageSet:
        """Return this device's share of the training, validation or test images."""
        return self.assignment.share(self.data, part)

    def make_back(self) -> nn.Module:
        """Return the layers behind the cut, with any weights."""
        cutter = _trace(self.assignment.model, self.data.num_classes, self.data.shape)
        _, layers = cutter.cut(self.assignment.cut)
        return copy.deepcopy(layers)

    def _check_front(self, layers: np.ndarray) -> None:
        """Take no front but one's own, if there is one; nor another in a case of a frozen one."""
        digest, limits = hash_layers(layers), self.assignment.limits
        if limits and limits.front and limits.front != digest:
            raise RuntimeError(
                f"this device takes the front {limits.front} and no other; this is {digest}"
            )
        super()._check_front(layers)


ROLES = (AssignedEdge,)
