"""An owner of images in DLMT as an experiment assigns it: data, key and model by its settings."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from flwr.app import RecordDict
from torch import nn

from pudica import models
from pudica.clients import protocol
from pudica.clients.assignments import OwnerAssignment
from pudica.clients.data import ImageSet, Part, Splits, load_once
from pudica.clients.dlmt.owner import Owner
from pudica.clients.dlmt.standardising import PixelStandardiser, StandardisedImages
from pudica.clients.runtime.role import Arrays, Config
from pudica.clients.runtime.snapshots import Snapshots
from pudica.clients.runtime.vault import AnyVault
from pudica.clients.shields.disguises import UNUSABLE, Key, KeyedDisguise
from pudica.clients.shields.disguises.breaks import (
    KNOWN_PAIR,
    is_affine,
    mean_search_space,
    run_attacks,
)
from pudica.models import optimizers, packing
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.similarity import psnr, ssim
from pudica.models.training import Images, count_correct

AUDITED = slice(0, 1000)
"""The images that a disguise is audited with."""


@lru_cache(maxsize=2)
def _build_model(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Return a model, shared by the owners of one process: each request brings all its weights."""
    return models.build_for(name, shape, num_classes=classes)


class AssignedOwner(Owner):
    """An owner whose images, key and model an experiment names; answers the laboratory.

    Parameters
    ----------
    vault : AnyVault
        Holds what the owner remembers of its own training.
    assignment : OwnerAssignment
    """

    def __init__(self, vault: AnyVault, assignment: OwnerAssignment) -> None:
        self.vault = vault
        self.assignment = assignment
        self.training, self.local_epochs = assignment.training, assignment.local_epochs
        self.seed, self.dp = assignment.seed, assignment.dp
        self.rounds = self.training.epochs // self.local_epochs
        self.compute = Compute(assignment.compute)
        self.data: Splits = load_once(assignment.data.model_dump_json(), assignment.data_seed)
        self.key = self._load_key()
        self.disguise = KeyedDisguise(self.key) if self.key else None
        self._shares = {part: assignment.share(self.data, part) for part in get_args(Part)}
        self.snapshots = Snapshots(vault, assignment.case, assignment.fingerprint())

    def _load_key(self) -> Key | None:
        a, shape = self.assignment, self.data.shape
        if a.shield is None:
            return None
        if a.key == "shared":
            return Key.from_seed(a.shield, shape, a.data_seed)
        if a.key == "per-owner":
            return Key.from_seed(a.shield, shape, a.data_seed, a.partition)
        try:
            return Key.load_for(Path(a.key).expanduser(), a.shield, shape)
        except RequestError as error:
            # The server may have named the file, and must not learn what lies where.
            raise RuntimeError(UNUSABLE) from error

    def roll_back(self, turn: int) -> None:
        """Forget all rounds after this one: a run goes back to it."""
        self.snapshots.drop_after(turn)

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud learns of the data."""
        span = self.disguised_images("train").span
        return {
            "classes": self.data.num_classes,
            "key": self.key.fingerprint if self.key else self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "kind": span.kind,
            "low": span.low,
            "high": span.high,
            "reports": int(self.assignment.report),
            **{part: len(images) for part, images in self._shares.items()},
        }

    # --------------------------------------------------------- answers; errors reach the cloud

    def send_statistics(self, _: Config, __: Arrays) -> RecordDict:
        """Return mean and deviation of each channel of the disguised training images, (2, C)."""
        moments = torch.stack(self.disguised_images("train").moments()).flatten(1)
        return protocol.reply({}, normalisation=moments.numpy())

    def send_images(self, config: Config, _: Arrays) -> RecordDict:
        """Return disguised training images and their labels, if the cloud trains."""
        if self.assignment.train != "central":
            raise RuntimeError("this owner trains by itself, and gives no images away")
        images = self.disguised_images("train")
        chosen = slice(config["start"], config["start"] + config["count"])
        released = images.released_images(chosen).to(images.span.storage_dtype)
        return protocol.reply({}, images=released.numpy(), labels=images.labels[chosen])

    def train_round(self, config: Config, arrays: Arrays) -> RecordDict:
        """Train the model that was sent, if owners train.

        ``needed`` is the last round of the cloud's last checkpoint, to which a killed run goes
        back.
        """
        a, number = self.assignment, config["round"]
        images = _normalise(self.disguised_images("train"), arrays)
        if a.train != "federated":
            raise RuntimeError("this owner gives images away, and does not train")
        state: Arrays = {}
        if a.keep_momentum:
            self.snapshots.drop_after(number - 1)
            kept = self.snapshots.load(self.snapshots.newest())
            state = kept[0] if kept else {}
        training = self.train_on(self._load_model(a.model, arrays), images, number, state)
        if a.keep_momentum:
            state = optimizers.optimizer_state(training.optimizer)
            self.snapshots.keep(number, config["needed"], state, {})
        loss = sum(training.losses) / len(training.losses)
        # Without noise a loss tells of the images what DP-SGD is to hide.
        said = {} if self.dp else {"loss": loss}
        return protocol.reply(said, **packing.model_arrays(training.model))

    def _load_model(self, name: str, arrays: Arrays) -> nn.Module:
        """Return a model with the weights that were sent."""
        model = _build_model(name, self.data.num_classes, self.data.shape)
        model = self.compute.move_model(model)
        packing.load_model_arrays(model, arrays)
        return model

    def count_correct(self, config: Config, arrays: Arrays) -> RecordDict:
        """Return how many of its validation or test images a model classifies correctly.

        ``view`` says what the model is shown: ``disguised`` images; ``plain`` ones, normalised by
        this owner's own statistics where none were sent; or ``standardised`` ones, see
        :class:`.PixelStandardiser`. The owner shows no more than its assignment allows.
        """
        a, part, view, model = self.assignment, config["part"], config["view"], config["model"]
        if not a.report:
            raise RuntimeError("this owner keeps to itself how often models were right")
        views = ("disguised", "plain", "standardised") if a.measures else ("disguised",)
        if part not in ("validation", "test") or view not in views:
            raise RuntimeError(f"this owner shows nobody its {part} images, {view}")
        if model not in (a.model, a.examiner):
            raise RuntimeError(f"this owner was told of no model '{model}'")
        given, images = self._load_model(model, arrays), self._view_images(part, view, arrays)
        return protocol.reply({"right": count_correct(given, images, self.compute)})

    def _view_images(self, part: Part, view: str, arrays: Arrays) -> Images:
        if view == "plain" and "normalisation" not in arrays:
            mean, std = self.plain_images("train").statistics()
            return replace(self.plain_images(part), mean=mean, std=std)
        if view == "plain":
            return _normalise(self.plain_images(part), arrays)
        disguised = _normalise(self.disguised_images(part), arrays)
        if view == "standardised":
            return StandardisedImages(disguised, self._standardiser)
        return disguised

    @cached_property
    def _standardiser(self) -> PixelStandardiser:
        """From half of the training images disguised, and the other half plain."""
        count = len(self.plain_images("train"))
        disguised, plain = (np.arange(start, count, 2) for start in (0, 1))
        return PixelStandardiser(
            self.disguised_images("train").subset(disguised),
            self.plain_images("train").subset(plain if count > 1 else disguised),
        )

    def audit(self, _: Config, __: Arrays) -> RecordDict:
        """Return how similar disguised images are to plain ones, and how far attacks come.

        ``psnr`` (dB) and ``ssim`` of disguised test images, both scaled to [0, 1];
        ``psnr-standardised`` and ``ssim-standardised`` of what z-scores make of them;
        ``search-space`` where Eqs. (6) to (9) of paper 001 apply; ``ATTACK/IMAGES/WHAT`` of an
        :class:`.AttackResult`. Infinities are left out.
        """
        if not self.assignment.measures:
            raise RuntimeError("this owner was not told to measure its disguise")
        found: dict[str, float] = {}
        if self.disguise is not None and len(self.plain_images("test")):
            found |= self._measure_similarity()
        if self.disguise is not None and is_affine(self.disguise.key.steps):
            training = self.plain_images("train").plain_images(AUDITED).numpy()
            found["search-space"] = mean_search_space(self.disguise, training)
            for attack in run_attacks(self.disguise, training):
                # A known pair is one image, no matter how many others help to find m.
                images = 1 if attack.attack == KNOWN_PAIR else attack.images
                for what in ("found", "pixels", "error"):
                    found[f"{attack.attack}/{images}/{what}"] = getattr(attack, what)
        return protocol.reply({name: value for name, value in found.items() if np.isfinite(value)})

    def _measure_similarity(self) -> dict[str, float]:
        plain, disguised = (
            each("test").pixels(AUDITED) for each in (self.plain_images, self.disguised_images)
        )
        found = {}
        for name, seen in {"": disguised, "-standardised": self._standardiser(disguised)}.items():
            found[f"psnr{name}"] = float(psnr(seen, plain).mean())
            found[f"ssim{name}"] = float(ssim(seen, plain).mean())
        return found

    handlers = {
        protocol.STATISTICS: send_statistics,
        protocol.IMAGES: send_images,
        protocol.ROUND: train_round,
        protocol.RIGHT: count_correct,
        protocol.AUDIT: audit,
    }


def _normalise(images: ImageSet, arrays: Arrays) -> ImageSet:
    mean, std = arrays["normalisation"].float()[:, :, None, None]
    return replace(images, mean=mean, std=std)


ROLES = (AssignedOwner,)
