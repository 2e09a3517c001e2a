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
from pudica.clients.dlmt.standardising import Standardised, Standardiser
from pudica.clients.runtime.role import Arrays as Tensors
from pudica.clients.runtime.role import Config
from pudica.clients.runtime.snapshots import Snapshots
from pudica.clients.runtime.vault import Vault
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

SAMPLE = 1000
"""Images that a disguise is audited with."""

Numbers = dict[str, int | float]
Arrays = dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _model(name: str, classes: int, channels: int, side: int) -> nn.Module:
    """Return a model, shared by the owners of one process: each request brings all its weights."""
    return models.build(name, num_classes=classes, channels=channels, image_size=side)


class AssignedOwner(Owner):
    """An owner whose images, key and model an experiment names; answers the laboratory.

    Parameters
    ----------
    vault : Vault
        Where what it remembers of its own training lies.
    assignment : OwnerAssignment
    """

    def __init__(self, vault: Vault, assignment: OwnerAssignment) -> None:
        self.vault = vault
        self.assignment = assignment
        self.training, self.local_epochs = assignment.training, assignment.local_epochs
        self.seed = assignment.seed
        self.compute = Compute(assignment.compute)
        self.data: Splits = load_once(assignment.data.model_dump_json(), assignment.data_seed)
        self.key = self._key()
        self.disguise = KeyedDisguise(self.key) if self.key else None
        self._shares = {part: self._share(part) for part in get_args(Part)}
        self.snapshots = Snapshots(vault, assignment.case, assignment.fingerprint())

    def _key(self) -> Key | None:
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
            # The server may have named the file, and is not to learn what lies where.
            raise RuntimeError(UNUSABLE) from error

    def roll_back(self, turn: int) -> None:
        """Forget what it remembers of rounds after this one: a run goes back to it."""
        self.snapshots.drop_after(turn)

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud is told of the data."""
        span = self.own("train").span
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

    def _share(self, part: Part) -> ImageSet:
        return self.assignment.share(self.data, part)

    # -------------------------------------------------------------------- what it sends

    def statistics(self) -> tuple[Numbers, Arrays]:
        """Return mean and deviation of each channel of the disguised training images, (2, C)."""
        images = self.own("train")
        values = torch.stack(images.moments()).flatten(1)
        return {}, {"normalisation": values.numpy()}

    def images(self, start: int, count: int) -> Arrays:
        """Return disguised training images and their labels, for the cloud to train on.

        Raises
        ------
        RuntimeError
            If it is the owner who trains.
        """
        if self.assignment.train != "central":
            raise RuntimeError("this owner trains by itself, and gives no images away")
        images = self.own("train")
        chosen = slice(start, start + count)
        released = images.released_images(chosen).to(images.span.storage_dtype)
        return {"images": released.numpy(), "labels": images.labels[chosen]}

    # ------------------------------------------------------------------------ training

    def train(self, number: int, needed: int, arrays: Tensors) -> tuple[Numbers, Arrays]:
        """Train for one round with the model that is sent.

        Parameters
        ----------
        number : int
            Of the round, from 0.
        needed : int
            The last round of the cloud's last checkpoint, to which a killed run goes back.
        arrays : dict of str to Tensor
            ``weights``, ``buffers``, as packed; ``normalisation``, (2, C).

        Raises
        ------
        RuntimeError
            If it is the cloud that trains.
        """
        a, images = self.assignment, self._normalised(self.own("train"), arrays)
        if a.train != "federated":
            raise RuntimeError("this owner gives images away, and does not train")
        state: Tensors = {}
        if a.keep_momentum:
            self.snapshots.drop_after(number - 1)
            kept = self.snapshots.load(self.snapshots.newest())
            state = kept[0] if kept else {}
        training = self.train_on(self._given(a.model, arrays), images, number, state)
        if a.keep_momentum:
            self.snapshots.keep(number, needed, optimizers.optimizer_state(training.optimizer), {})
        loss = sum(training.losses) / len(training.losses)
        return {"loss": loss}, packing.model_arrays(training.model)

    def _given(self, name: str, arrays: Tensors) -> nn.Module:
        """Return the model with the weights that were sent."""
        channels, side, _ = self.data.shape
        model = self.compute.move_model(_model(name, self.data.num_classes, channels, side))
        packing.load_model_arrays(model, arrays)
        return model

    @staticmethod
    def _normalised(images: ImageSet, arrays: Tensors) -> ImageSet:
        mean, std = arrays["normalisation"].float()[:, :, None, None]
        return replace(images, mean=mean, std=std)

    # -------------------------------------------------------------------- measurements

    def right(self, part: Part, view: str, model: str, arrays: Tensors) -> Numbers:
        """Return how many of its validation or test images a model gets right.

        Parameters
        ----------
        view : {"disguised", "plain", "standardised"}
            What the model is shown: disguised images; plain ones; or what somebody without the
            key makes of disguised ones, see :class:`Standardiser`.
        model : str
            Its name.
        arrays : dict of str to Tensor
            ``weights``, ``buffers``, ``normalisation``; plain images without the last are
            normalised by this owner's own statistics.

        Raises
        ------
        RuntimeError
            For another part, view or model than the assignment speaks of; or if the owner says
            nothing.
        """
        a = self.assignment
        if not a.report:
            raise RuntimeError("this owner keeps to itself how often models were right")
        views = ("disguised", "plain", "standardised") if a.measures else ("disguised",)
        if part not in ("validation", "test") or view not in views:
            raise RuntimeError(f"this owner shows nobody its {part} images, {view}")
        if model not in (a.model, a.examiner):
            raise RuntimeError(f"this owner was told of no model '{model}'")
        given, images = self._given(model, arrays), self._seen(part, view, arrays)
        return {"right": count_correct(given, images, self.compute)}

    def _seen(self, part: Part, view: str, arrays: Tensors) -> Images:
        if view == "plain" and "normalisation" not in arrays:
            mean, std = self.plain("train").statistics()
            return replace(self.plain(part), mean=mean, std=std)
        if view == "plain":
            return self._normalised(self.plain(part), arrays)
        if view == "standardised":
            return Standardised(self._normalised(self.own(part), arrays), self._standardiser)
        return self._normalised(self.own(part), arrays)

    @cached_property
    def _standardiser(self) -> Standardiser:
        """From half of the training images disguised, and the other half plain."""
        count = len(self.plain("train"))
        seen, known = (np.arange(start, count, 2) for start in (0, 1))
        return Standardiser(
            self.own("train").subset(seen), self.plain("train").subset(known if count > 1 else seen)
        )

    def audit(self) -> Numbers:
        """Return how like plain images disguised ones are, and how far attacks on them come.

        Returns
        -------
        dict
            ``psnr`` (dB) and ``ssim`` of disguised test images, both scaled to [0, 1];
            ``psnr-standardised`` and ``ssim-standardised`` of what z-scores make of them;
            ``search-space``, where Eqs. (6) to (9) of paper 001 apply;
            ``ATTACK/IMAGES/WHAT`` of an :class:`.AttackResult`, of one known pair with 1 image.
            Numbers that there are none of are left out.

        Raises
        ------
        RuntimeError
            If nothing is to be measured.
        """
        if not self.assignment.measures:
            raise RuntimeError("this owner was not told to measure its disguise")
        if self.disguise is None:
            return {}
        found = self._likeness()
        if is_affine(self.disguise.key.steps):
            training = self.plain("train").plain_images(slice(0, SAMPLE)).numpy()
            found["search-space"] = mean_search_space(self.disguise, training)
            for attack in run_attacks(self.disguise, training):
                # The pair is known, however many others help to find m.
                images = 1 if attack.attack == KNOWN_PAIR else attack.images
                for what in ("found", "pixels", "error"):
                    found[f"{attack.attack}/{images}/{what}"] = getattr(attack, what)
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def _likeness(self) -> dict[str, float]:
        plain = self.plain("test").pixels(slice(0, SAMPLE))
        if not len(plain):
            return {}
        found, shown = {}, self.own("test").pixels(slice(0, SAMPLE))
        for name, seen in {"": shown, "-standardised": self._standardiser(shown)}.items():
            found[f"psnr{name}"] = float(psnr(seen, plain).mean())
            found[f"ssim{name}"] = float(ssim(seen, plain).mean())
        return found


def answer_statistics(owner: AssignedOwner, _: Config, __: Tensors) -> RecordDict:
    """Say how the disguised images' channels are distributed."""
    numbers, arrays = owner.statistics()
    return protocol.reply(numbers, **arrays)


def answer_images(owner: AssignedOwner, config: Config, _: Tensors) -> RecordDict:
    """Give disguised images away, where the cloud is to train."""
    return protocol.reply({}, **owner.images(config["start"], config["count"]))


def answer_round(owner: AssignedOwner, config: Config, arrays: Tensors) -> RecordDict:
    """Train the model for some epochs."""
    numbers, trained = owner.train(config["round"], config["needed"], arrays)
    return protocol.reply(numbers, **trained)


def answer_right(owner: AssignedOwner, config: Config, arrays: Tensors) -> RecordDict:
    """Count what a model gets right."""
    return protocol.reply(owner.right(config["part"], config["view"], config["model"], arrays))


def answer_audit(owner: AssignedOwner, _: Config, __: Tensors) -> RecordDict:
    """Attack one's own disguise."""
    return protocol.reply(owner.audit())


AssignedOwner.handlers = {
    protocol.STATISTICS: answer_statistics,
    protocol.IMAGES: answer_images,
    protocol.ROUND: answer_round,
    protocol.RIGHT: answer_right,
    protocol.AUDIT: answer_audit,
}
ROLES = (AssignedOwner,)
