"""A participant whose model and data an experiment names."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from torch import nn

from pudica import models
from pudica.clients import protocol
from pudica.clients.assignments import ParticipantAssignment
from pudica.clients.data import ImageSet, Splits, load_once
from pudica.clients.runtime.role import Arrays, Config
from pudica.clients.runtime.vault import Vault
from pudica.clients.themis import submissions
from pudica.clients.themis.participant import CHEATING, Participant
from pudica.models.clock import timestamp
from pudica.models.compute import Compute
from pudica.models.files import load_weights_into
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive, torch_generator
from pudica.models.training import Training, accuracy

Measured = tuple[dict[str, int | float], dict[str, np.ndarray]]

SUBMITTED = "submitted.json"
CHEAT_BOUND = 1.0


class AssignedParticipant(Participant):
    """A participant of an experiment; it trains its model during the run.

    Parameters
    ----------
    vault : Vault
        Where its model lives.
    assignment : ParticipantAssignment
    """

    vault: Vault

    def __init__(self, vault: Vault, assignment: ParticipantAssignment) -> None:
        self.vault = vault
        self.assignment = assignment
        self.compute = Compute(assignment.compute)
        self._data_key = (assignment.data.model_dump_json(), assignment.data_seed)
        self._frozen: dict[str, nn.Module] = {}

    @property
    def data(self) -> Splits:
        """The public data."""
        return load_once(*self._data_key)

    @property
    def train_set(self) -> ImageSet:  # type: ignore[override]
        """The public training set, for the noise generator."""
        return self.data.train

    @property
    def validation_set(self) -> ImageSet:  # type: ignore[override]
        """The public validation set."""
        return self.data.validation

    @cached_property
    def own_train(self) -> ImageSet:
        """The training images for its own model: its partition, or all of them."""
        if self.assignment.data.partition is None:
            return self.data.train
        return self.assignment.share(self.data, "train")

    def describe_data(self) -> dict[str, int | str]:
        """Return what the organiser learns of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "fingerprint": self.data.fingerprint,
            "train": len(self.own_train),
        }

    # ------------------------------------------------------------------ local training

    def train_local(self, since: int, epoch: int, variant: str) -> Measured:
        """Train up to ``epoch`` epochs, and return the measurements after the first ``since``.

        Epochs that are done are answered from the vault: a resumed run or a replaced worker
        sees what an undisturbed one saw.

        Returns
        -------
        (dict, dict)
            Numbers, and the ``losses`` and ``accuracies`` of each epoch. A model that was trained
            elsewhere has one accuracy and no loss.
        """
        model = self._build_model()
        if self._is_trained(model):
            value = accuracy(self.model(variant), self.data.validation, self.compute)
            arrays = {"losses": np.zeros(0), "accuracies": np.array([value])}
            return {"best": value, "finished": 1, "num-examples": 0}, arrays
        training = self._build_training(model, variant)
        # A vault may have been left by another run of the same name.
        if saved := self._load(f"training-{variant}"):
            tensors, note = saved
            training.restore(tensors, note["losses"], note["accuracies"])
        while training.epoch < epoch and not training.finished:
            training.run_epoch(self.own_train, self.data.validation)
            self._save(training, variant)
        last = min(epoch, training.epoch)
        numbers: dict[str, int | float] = {
            "best": max(training.accuracies[:last]),
            "finished": int(training.finished and last == training.epoch),
            "num-examples": len(self.own_train),
        }
        return numbers, {
            "losses": np.array(training.losses[since:last]),
            "accuracies": np.array(training.accuracies[since:last]),
        }

    def _load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return what this assignment has saved under a name."""
        saved = self.vault.load(name)
        return saved if saved and saved[1]["of"] == self.assignment.fingerprint() else None

    def _build_model(self) -> nn.Module:
        model = models.build_for(
            self.assignment.participant.model,
            self.data.shape,
            num_classes=self.data.num_classes,
            seed=derive(self.assignment.training_seed, "weights"),
        )
        if weights := self.assignment.participant.weights:
            load_weights_into(model, weights)
        return model

    def _is_trained(self, model: nn.Module) -> bool:
        return models.is_frozen(model) or self.assignment.participant.weights is not None

    def _build_training(self, model: nn.Module, variant: str) -> Training:
        seed = self.assignment.training_seed
        schedule = self.assignment.participant.training or self.assignment.training
        own_noise = None
        if variant == CHEATING:
            randomness = torch_generator(seed, "own-noise")
            own_noise = NoiseGenerator.untrained(self.data.shape, CHEAT_BOUND, randomness)
        return Training(model, schedule, derive(seed, "training"), self.compute, own_noise)

    def _save(self, training: Training, variant: str) -> None:
        note = {
            "of": self.assignment.fingerprint(),
            "losses": training.losses,
            "accuracies": training.accuracies,
        }
        if training.finished:
            # The model first: a training that is saved as finished is not trained again.
            self.vault.save(f"model-{variant}", training.best, note)
            self._frozen.pop(variant, None)
        self.vault.save(f"training-{variant}", training.tensors(), note)

    def model(self, variant: str) -> nn.Module:
        """Return the trained model, frozen and in evaluation mode.

        Raises
        ------
        RuntimeError
            If it has not been trained.
        """
        if variant not in self._frozen:
            model = self._build_model()
            if not self._is_trained(model):
                saved = self._load(f"model-{variant}")
                if saved is None:
                    raise RuntimeError(
                        f"{self.assignment.participant.name} has no trained model ({variant})"
                    )
                model.load_state_dict(saved[0])
            if not models.is_frozen(model):
                model = models.freeze(self.assignment.participant.model, model)
            self._frozen[variant] = self.compute.move_model(model)
        return self._frozen[variant]

    def sign(self, images: torch.Tensor, predictions: np.ndarray) -> dict[str, str]:
        """Sign predictions and note them in the vault; in a simulation, do nothing."""
        key = self.assignment.private_key
        if key is None:
            return {}
        digests = submissions.digest(images.numpy()), submissions.digest(predictions)
        text = submissions.build_statement(self.assignment.run, *digests, len(predictions))
        earlier = json.loads(self.vault.read(SUBMITTED) or b"[]")
        note = {**json.loads(text), "at": timestamp()}
        self.vault.write(SUBMITTED, json.dumps([*earlier, note], indent=2).encode())
        return submissions.sign_with_file(key, text)


def answer_local(participant: AssignedParticipant, config: Config, _: Arrays) -> RecordDict:
    """Continue the training of the private model."""
    numbers, arrays = participant.train_local(config["since"], config["epoch"], config["variant"])
    return protocol.reply(numbers, **arrays)


AssignedParticipant.handlers = {**Participant.handlers, protocol.LOCAL: answer_local}
ROLES = (AssignedParticipant,)
