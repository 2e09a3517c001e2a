"""An owner of images in DLMT: private images, the key that disguises them, a model to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from pudica.clients.data import ImageSet, Part
from pudica.clients.data.examples import load_pixels
from pudica.clients.dlmt.private_training import PrivateTraining, validate_private_model
from pudica.clients.runtime.role import OwnApp, Role, keep_to_itself, reply_once, run_of
from pudica.clients.runtime.vault import AnyVault
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.clients.shields.dp_sgd import DpSgdConfig, calibrate_noise, count_steps
from pudica.models import optimizers, packing
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.naming import validate_node_name
from pudica.models.optimizers import OptimizerFactory
from pudica.models.randomness import (
    Randomness,
    SecretGenerator,
    SystemGenerator,
    numpy_generator,
)
from pudica.models.training import Training, TrainingConfig
from pudica.models.trial import count_classes

if TYPE_CHECKING:
    from pudica.clients.shields import Disguise

CONSTANT_RATE = TrainingConfig(gamma=1.0)
KEY, NOISE = "disguise-key", "dp-noise-key"
TRIED = 2
"""Images on which a model is tried."""
EVALUATED = 250
"""Images of a batch in evaluation."""
Normalisation = tuple[torch.Tensor, torch.Tensor]
"""Mean and standard deviation of each channel, (C, 1, 1)."""


class Owner(Role):
    """One owner of private images; answers Flower's own strategies, such as ``FedAvg``.

    It trains on disguised images alone, normalised by their own statistics. The model travels;
    images and key stay. A disguise is an obfuscation, so whoever holds the key's inverse, or enough
    images, undoes it.

    Parameters
    ----------
    model : Module
        Maps images (B, C, H, W) to logits (B, classes). Its weights come with each message.
    train, test : Dataset
        Map-style, of pairs of an image, a uint8 tensor (C, H, W), and its class. They are read once
        and kept in memory. Without ``test`` the owner can't evaluate: set ``fraction_evaluate=0``.
    disguise : Disguise, optional
        Applied to all images. If it has no key, a fresh secret one is drawn and kept in this node's
        vault for the run; otherwise its own key is used. Owners that are to share one model's view
        of the images need the same key.
    training : TrainingConfig, optional
        Batch size, learning rate, momentum, schedule, augmentation. By default SGD 0.01 with
        momentum 0.9 and batches of 64, at a constant rate. Round and ``local_epochs`` decide where
        in the schedule it is.
    optimizer : callable, optional
        Makes an optimiser of parameters, anew each round, in place of ``training``'s SGD.
    local_epochs : int
        In a round.
    normalisation : (sequence of float, sequence of float), optional
        Mean and standard deviation of each channel, where 0 and 1 are the ends of the range of
        disguised values. By default those of this owner's disguised training images.
    name : str, optional
        What it is called when it joins.
    seed : int
        Of the order of batches, augmentation and dropout.
    compute : ComputeConfig, optional
        Device, threads and precision.
    dp : DpSgdConfig, optional
        Train by DP-SGD. Then no loss is said, and no round after ``rounds`` is answered.
    rounds : int
        With ``dp``: over how many rounds its ε is spent.

    Raises
    ------
    DataError
        A data set that is empty, or yields no such pairs.
    RequestError
        A model whose output is no logits, images that do not fit the key or each other, or a wrong
        argument.
    """

    optimizer: OptimizerFactory | None = None
    dp: DpSgdConfig | None = None
    rounds: int = 0
    _shares: dict[Part, ImageSet]
    _chosen_normalisation: Normalisation | None = None

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        test: Any = None,
        *,
        disguise: Disguise | None = None,
        training: TrainingConfig | None = None,
        optimizer: OptimizerFactory | None = None,
        local_epochs: int = 1,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
        name: str | None = None,
        seed: int = 0,
        compute: ComputeConfig | None = None,
        dp: DpSgdConfig | None = None,
        rounds: int = 0,
    ) -> None:
        self.name = validate_node_name(name) if name else None
        self.model = model
        self.training, self.optimizer = training or CONSTANT_RATE, optimizer
        if type(local_epochs) is not int or local_epochs < 1:
            raise RequestError(f"local_epochs: must be 1 or more, is {local_epochs!r}")
        self.local_epochs, self.seed = local_epochs, seed
        self.compute = Compute(compute or ComputeConfig())
        self._read_images(train, test)
        self.dp, self.rounds = dp, rounds
        if dp is not None:
            if type(rounds) is not int or rounds < 1:
                raise RequestError(f"rounds: must be 1 or more with dp, is {rounds!r}")
            validate_private_model(model)
        self._has_fresh_key = disguise is not None and not disguise.has_key
        self.disguise = self._choose_disguise(disguise)
        self._chosen_normalisation = normalisation and self._validate_normalisation(normalisation)
        x, _ = self.plain_images("train").batch(slice(0, TRIED))
        labels = np.concatenate([images.labels for images in self._shares.values()])
        self.classes = count_classes(model, x, torch.from_numpy(labels))

    def _read_images(self, train: Any, test: Any) -> None:
        given: dict[Part, Any] = {"train": train}
        if test is not None:
            given["test"] = test
        self._shares = {part: load_pixels(dataset, part) for part, dataset in given.items()}
        shapes = {part: images.images.shape[1:] for part, images in self._shares.items()}
        self.shape = shapes["train"]
        for part, shape in shapes.items():
            if shape != self.shape:
                raise RequestError(f"{part}: images are {shape}, those of train are {self.shape}")

    def _choose_disguise(self, disguise: Disguise | None) -> KeyedDisguise | None:
        """Return the disguise with its key, or with a fresh one of this owner alone."""
        if disguise is None:
            return None
        if not disguise.has_key:
            return KeyedDisguise(Key.new(disguise.notation, self.shape, SystemGenerator()))
        disguise.keyed.require_shape(self.shape)
        return disguise.keyed

    def _validate_normalisation(
        self, values: tuple[Sequence[float], Sequence[float]]
    ) -> Normalisation:
        channels = self.shape[0]
        try:
            mean, std = (torch.tensor(each, dtype=torch.float32).reshape(-1) for each in values)
            fits = len(mean) == len(std) == channels and bool((std > 0).all())
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            raise RequestError(
                f"normalisation: must be means and standard deviations above 0 of {channels} "
                f"channels, ([…], […]), is {values!r}"
            )
        return mean[:, None, None], std[:, None, None]

    def bind(self, vault: AnyVault) -> None:
        """Take the vault, and keep a fresh key in it, or load the one that it holds."""
        super().bind(vault)
        if not self._has_fresh_key or self.disguise is None:
            return
        fresh, kept = self.disguise.key, vault.load(KEY)
        note = {"notation": fresh.notation, "shape": list(fresh.shape)}
        # A vault of another disguise may lie under the same name.
        if kept and kept[1] == note:
            self.disguise = KeyedDisguise(Key(fresh.notation, fresh.shape, kept[0]))
            self.__dict__.pop("normalisation", None)
        else:
            vault.save(KEY, fresh.tensors, note)

    def describe_data(self) -> dict[str, int | str]:
        """Return what a server learns of the data when this owner joins."""
        about: dict[str, int | str] = {
            "classes": self.classes,
            "shape": "x".join(map(str, self.shape)),
            **{part: len(images) for part, images in self._shares.items()},
        }
        return about | ({"name": self.name} if self.name else {})

    def plain_images(self, part: Part) -> ImageSet:
        """Return this owner's images of one part; RequestError if it has none."""
        if part not in self._shares:
            raise RequestError(
                f"this owner has no {part} images; Owner(..., {part}=…), or fraction_evaluate=0 in "
                "the strategy"
            )
        return self._shares[part]

    def disguised_images(self, part: Part) -> ImageSet:
        """Return this owner's images of one part, disguised."""
        return replace(self.plain_images(part), disguise=self.disguise)

    @cached_property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of each channel of disguised images, (C, 1, 1)."""
        return self._chosen_normalisation or self.disguised_images("train").statistics()

    def normalised_images(self, part: Part) -> ImageSet:
        """Return disguised images of one part as the model sees them."""
        mean, std = self.normalisation
        return replace(self.disguised_images(part), mean=mean, std=std)

    def train_on(
        self, model: nn.Module, images: ImageSet, turn: int, state: dict[str, torch.Tensor]
    ) -> Training:
        """Train a model for one round.

        Parameters
        ----------
        turn : int
            The round, from 0.
        state : dict of str to Tensor
            The optimiser's after the round before; empty for a fresh optimiser.
        """
        training = self._build_training(model, images, turn, state)
        training.epoch = turn * self.local_epochs
        if state:
            optimizers.load_optimizer_state(training.optimizer, state)
        for _ in range(self.local_epochs):
            training.train_epoch(images)
        return training

    def _build_training(
        self, model: nn.Module, images: ImageSet, turn: int, state: dict[str, torch.Tensor]
    ) -> Training:
        common = (model, self.training, self.seed, self.compute)
        if self.dp is None:
            return Training(*common, optimizer=self.optimizer)
        if not 0 <= turn < self.rounds:
            raise RuntimeError(f"round {turn + 1}: ε is that of {self.rounds} rounds")
        batch = self.training.batch_size
        steps = self.rounds * self.local_epochs * count_steps(len(images), batch)
        rate = min(1.0, batch / len(images))
        multiplier = calibrate_noise(self.dp.epsilon, self.dp.delta, rate, steps)
        values = [*model.state_dict().values(), *state.values(), images.mean, images.std]
        inputs = packing.pack(values).tobytes()
        return PrivateTraining(
            *common,
            optimizer=self.optimizer,
            dp=self.dp,
            multiplier=multiplier,
            draw=lambda epoch: self._draw_noise(epoch, inputs),
        )

    def _draw_noise(self, epoch: int, inputs: bytes) -> Randomness:
        """Return the source of an epoch's noise; secret noise is new for any other inputs."""
        if self.dp is None or self.dp.noise == "seeded":
            return numpy_generator(self.seed, "dp-sgd", epoch)
        return SecretGenerator(self.vault.secret(NOISE), f"dp-sgd/{epoch}/".encode() + inputs)

    def load(self, arrays: ArrayRecord) -> nn.Module:
        """Return the model with the weights that a server sent.

        Raises
        ------
        RequestError
            Names or shapes are not the model's.
        """
        own, given = self.model.state_dict(), arrays.to_torch_state_dict()
        if own.keys() != given.keys():
            unknown, missing = (
                ", ".join(sorted(names)) or "none"
                for names in (given.keys() - own.keys(), own.keys() - given.keys())
            )
            raise RequestError(
                f"arrays: {unknown} are none of this model's, and {missing} are missing"
            )
        for name, tensor in given.items():
            if tensor.shape != own[name].shape:
                raise RequestError(
                    f"arrays: '{name}' has the shape {tuple(tensor.shape)}, this model's is "
                    f"{tuple(own[name].shape)}"
                )
        self.model.load_state_dict(given)
        return self.compute.move_model(self.model)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Return loss and accuracy of a model on disguised test images."""
        images, loss, correct = self.normalised_images("test"), 0.0, 0
        model.eval()
        for start in range(0, len(images), EVALUATED):
            x, y = images.batch(slice(start, start + EVALUATED))
            y = y.to(self.compute.device)
            logits = self.compute.forward(model, self.compute.move_batch(x))
            loss += float(cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
        return loss / len(images), correct / len(images)

    @classmethod
    def register(cls, app: ClientApp, own: OwnApp) -> None:
        """Let an app answer ``train`` and ``evaluate`` as Flower's own strategies send them."""
        super().register(app, own)
        app.train()(_make_handler(_answer_train, own))
        app.evaluate()(_make_handler(_answer_evaluate, own))


Answer = tuple[dict[str, Any], ArrayRecord | None]
"""Metrics, and a trained model."""


def _answer_train(owner: Owner, arrays: ArrayRecord, turn: int) -> Answer:
    images = owner.normalised_images("train")
    training = owner.train_on(owner.load(arrays), images, turn, {})
    loss = sum(training.losses) / len(training.losses)
    metrics: dict[str, Any] = {"num-examples": len(images)}
    if owner.dp is None:  # a loss would leave without noise
        metrics["loss"] = loss
    return metrics, ArrayRecord(training.model.state_dict())


def _answer_evaluate(owner: Owner, arrays: ArrayRecord, _: int) -> Answer:
    count = len(owner.plain_images("test"))
    loss, accuracy = owner.evaluate(owner.load(arrays))
    return {"num-examples": count, "loss": loss, "accuracy": accuracy}, None


def _make_handler(
    answer: Callable[[Owner, ArrayRecord, int], Answer], own: OwnApp
) -> Callable[[Message, Context], Message]:
    """Turn ``answer(owner, arrays, turn)`` into a Flower message handler."""

    def handler(message: Message, context: Context) -> Message:
        run, request = run_of(context), message.content

        @keep_to_itself()
        def content() -> RecordDict:
            owner: Any = own.find({"run": run}, context)
            if len(request.array_records) != 1:
                raise RequestError(
                    "a message must hold one ArrayRecord, the model's, holds "
                    f"{len(request.array_records)}"
                )
            ((key, arrays),) = request.array_records.items()
            configs = request.config_records.values()
            number = next((c["server-round"] for c in configs if "server-round" in c), 1)
            with owner.compute.use_threads():
                metrics, trained = answer(owner, arrays, max(0, int(str(number)) - 1))
            model = {} if trained is None else {key: trained}
            return RecordDict({**model, "metrics": MetricRecord(metrics)})

        return reply_once(message, context, run, content)

    return handler
