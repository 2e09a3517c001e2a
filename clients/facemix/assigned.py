"""An edge as an experiment assigns it: a model of the zoo, data read by its settings."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import get_args

import torch

from pudica.clients.assignments import InferenceAssignment
from pudica.clients.data import ImageSet, Part, Splits, load_once
from pudica.clients.facemix.edge import InferenceEdge
from pudica.clients.facemix.stages import Tensors
from pudica.clients.facemix.terms import Terms
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.front import activation_shape
from pudica.clients.shields.stages import StagedModel, build_staged_cached
from pudica.models.compute import Compute
from pudica.models.cut import OUTPUT


class AssignedEdge(InferenceEdge):
    """An edge whose model and data an experiment names.

    Parameters
    ----------
    vault : Vault
        Holds its stages, its key and its predictions.
    assignment : InferenceAssignment
    """

    vault: Vault
    shares: dict[Part, ImageSet]  # type: ignore[assignment]

    def __init__(self, vault: Vault, assignment: InferenceAssignment) -> None:
        a = assignment
        self.assignment = a
        self.compute = Compute(a.compute)
        self.data: Splits = load_once(a.data.model_dump_json(), a.data_seed)
        built: StagedModel = build_staged_cached(
            a.model, len(self.data.attributes), self.data.shape, a.stages, a.shield, a.largest
        )
        self.mixing, self.shield = a.shield, built.shield
        self.shape, self.features = self.data.shape, built.shield.shape
        self.returned = activation_shape(built.main, self.features)
        self.is_local = a.stages[0] == OUTPUT
        self.attributes = self.data.attributes
        self.keys, self.report, self.on_predictions = a.keys, a.report, None
        self.seed, self.place = a.seed, str(a.partition)
        self.terms = Terms.read(a.model_dump())
        # Where the cloud trains, training images are its own.
        parts: tuple[Part, ...] = ("test",) if a.train == "central" else get_args(Part)
        self.shares = {part: a.share(self.data, part) for part in parts}
        # A copy: the model is shared with the other edges of this process.
        self.hold_stages(copy.deepcopy(built.edge_stages))
        self.bind(vault)

    @property
    def fingerprint(self) -> str:
        """A hash of the assignment, as far as it decides what crosses."""
        return self.assignment.fingerprint()

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud learns of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "attributes": "\n".join(self.data.attributes),
            "reports": int(self.assignment.report),
            **{part: len(self.shares.get(part, ())) for part in get_args(Part)},
        }

    def load_stages(self, arrays: Tensors) -> None:
        """Take stages for now, and the images' normalisation; errors as of :meth:`adopt`."""
        super().load_stages(arrays)
        if "normalisation" in arrays:
            mean, std = arrays["normalisation"].float()[:, :, None, None]
            if float(std.min()) <= 0:
                raise ValueError("normalisation with no deviation")
            self.shares = {
                part: replace(images, mean=mean, std=std) for part, images in self.shares.items()
            }

    def stage_tensors(self) -> list[torch.Tensor]:
        """Return all that features depend on besides images."""
        images = self.shares["test"]
        return [*super().stage_tensors(), images.mean, images.std]


ROLES = (AssignedEdge,)
