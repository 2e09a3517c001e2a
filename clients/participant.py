"""A participant of THEMIS: private model, public data, answers to the organiser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import nn

from pudica import models
from pudica.clients import submissions
from pudica.clients.assignments import ParticipantAssignment
from pudica.clients.data import ImageSet, Splits, load_once
from pudica.clients.vault import Vault
from pudica.models.clock import timestamp
from pudica.models.compute import Compute
from pudica.models.files import load_weights_into
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.randomness import derive, numpy_generator, torch_generator
from pudica.models.training import Training, accuracy, predict

Update = tuple[np.ndarray, dict[str, int | float]]
Measured = tuple[dict[str, int | float], dict[str, np.ndarray]]

SUBMITTED = "submitted.json"
HONEST, CHEATING = "honest", "cheating"
CHEAT_BOUND = 1.0


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the training images in one generator epoch, the same for all."""
    return numpy_generator(seed, "order", epoch).permutation(size)


class NoisyBatches:
    """The generator's training batches: images, labels and the noise ``e`` on them.

    Participants of one process share the last batch: in ``joint`` mode all of them get the
    same one, so it is drawn once.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self._key: tuple[int | str, ...] = ()
        self._batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def get(
        self, seed: int, epoch: int, step: int, size: int, noise: str, visitor: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x (B, C, H, W), y (B,) and e, (B, C, H, W) or (1, C, H, W) ``per-batch``."""
        key = (seed, epoch, step, size, noise, visitor)
        if key != self._key:
            order = epoch_order(len(self.images), seed, epoch)
            x, y = self.images.batch(order[step * size : (step + 1) * size])
            shape = x.shape if noise == "per-image" else (1, *x.shape[1:])
            e = torch.randn(shape, generator=torch_generator(seed, "noise", epoch, step, visitor))
            self._key, self._batch = key, (x, y, e)
        return self._batch


@lru_cache(maxsize=2)
def noisy_batches(config: str, seed: int) -> NoisyBatches:
    """Return the batches over the public training set; arguments as of ``load_once``."""
    return NoisyBatches(load_once(config, seed).train)


class Participant:
    """One participant's side of every exchange.

    Parameters
    ----------
    vault : Vault
        Where its model lives.
    assignment : ParticipantAssignment
    """

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

    @cached_property
    def own_train(self) -> ImageSet:
        """The training images it trains its model on: its partition, or all of them."""
        if self.assignment.data.partition is None:
            return self.data.train
        return self.assignment.share(self.data, "train")

    def introduced(self) -> dict[str, int | str]:
        """Return what the organiser is told of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "fingerprint": self.data.fingerprint,
            "train": len(self.own_train),
        }

    # ------------------------------------------------------------------ local training

    def train_local(self, since: int, epoch: int, variant: str) -> Measured:
        """Bring training to ``epoch`` epochs and return those measurements that came ``since``.

        Asked again for epochs that are done, it answers from the vault: a resumed run or a
        replaced worker sees what an undisturbed one saw.

        Returns
        -------
        (dict, dict)
            Numbers, and ``losses`` and ``accuracies``, one of each for an epoch. A model that is
            trained already has an accuracy alone.
        """
        model = self._new_model()
        if self._is_trained(model):
            return self._delivered(variant)
        training = self._training(model, variant)
        kept = self.vault.load(f"training-{variant}")
        # A vault may have been left by another run of the same name.
        if kept and kept[1]["of"] == self.assignment.fingerprint():
            training.restore(kept[0], kept[1]["losses"], kept[1]["accuracies"])
        while training.epoch < epoch and not training.finished:
            training.run_epoch(self.own_train, self.data.validation)
            self._keep(training, variant)
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

    def _new_model(self) -> nn.Module:
        channels, side, _ = self.data.shape
        model = models.build(
            self.assignment.participant.model,
            num_classes=self.data.num_classes,
            channels=channels,
            image_size=side,
            seed=derive(self.assignment.training_seed, "weights"),
        )
        if weights := self.assignment.participant.weights:
            load_weights_into(model, weights)
        return model

    def _is_trained(self, model: nn.Module) -> bool:
        return models.is_frozen(model) or self.assignment.participant.weights is not None

    def _training(self, model: nn.Module, variant: str) -> Training:
        seed = self.assignment.training_seed
        schedule = self.assignment.participant.training or self.assignment.training
        own_noise = None
        if variant == CHEATING:
            randomness = torch_generator(seed, "own-noise")
            own_noise = NoiseGenerator.untrained(self.data.shape, CHEAT_BOUND, randomness)
        return Training(model, schedule, derive(seed, "training"), self.compute, own_noise)

    def _keep(self, training: Training, variant: str) -> None:
        note = {
            "of": self.assignment.fingerprint(),
            "losses": training.losses,
            "accuracies": training.accuracies,
        }
        if training.finished:
            # First the model: once the training is on disk as finished, nobody trains again.
            self.vault.save(f"model-{variant}", training.best, note)
            self._frozen.pop(variant, None)
        self.vault.save(f"training-{variant}", training.tensors(), note)

    def _delivered(self, variant: str) -> Measured:
        right = accuracy(self.model(variant), self.data.validation, self.compute)
        numbers: dict[str, int | float] = {"best": right, "finished": 1, "num-examples": 0}
        return numbers, {"losses": np.zeros(0), "accuracies": np.array([right])}

    def model(self, variant: str) -> nn.Module:
        """Return the trained model, frozen and in evaluation mode.

        Raises
        ------
        RuntimeError
            If it has not been trained.
        """
        if variant not in self._frozen:
            model = self._new_model()
            if not self._is_trained(model):
                kept = self.vault.load(f"model-{variant}")
                if kept is None or kept[1]["of"] != self.assignment.fingerprint():
                    raise RuntimeError(
                        f"{self.assignment.participant.name} has no trained model ({variant})"
                    )
                model.load_state_dict(kept[0])
            if not models.is_frozen(model):
                model = models.freeze(self.assignment.participant.model, model)
            self._frozen[variant] = self.compute.move_model(model)
        return self._frozen[variant]

    # ------------------------------------------------------------- the noise generator

    def gradient(
        self, generator: torch.Tensor, bound: float, variant: str, schedule: Schedule
    ) -> Update:
        """Return the gradient of this model's loss on the noisy batches of one request.

        Parameters
        ----------
        generator : Tensor of shape (2, C, H, W)
            μ and ρ.
        """
        noise = NoiseGenerator(generator.to(self.compute.device), bound)
        model, loss, count = self.model(variant), 0.0, 0
        total = torch.zeros_like(generator, device=self.compute.device)
        for x, y, e in self._batches(schedule):
            part, part_loss = noise.task_gradient(model, x, y, e, self.compute)
            total, loss = total + part * len(y), loss + float(part_loss) * len(y)
            count += len(y)
        return (total / count).cpu().numpy(), {"loss": loss / count, "num-examples": count}

    def visit(
        self,
        state: torch.Tensor,
        steps: int,
        bound: float,
        learning_rate: float,
        weight: float,
        variant: str,
        schedule: Schedule,
    ) -> Update:
        """Return the generator's state after Adam steps on this model's own loss.

        ``−log mean σ² + λ·CE``: the per-model step of the authors' code.

        Parameters
        ----------
        state : Tensor of shape (6, C, H, W)
            As of :meth:`pudica.models.generator.GeneratorTraining.pack`.
        weight : float
            λ.
        """
        training = GeneratorTraining.unpack(
            state.to(self.compute.device), steps, bound, learning_rate
        )
        model, loss, count = self.model(variant), 0.0, 0
        for x, y, e in self._batches(schedule):
            gradient, part_loss = training.generator.task_gradient(model, x, y, e, self.compute)
            training.step(weight * gradient)
            loss, count = loss + float(part_loss) * len(y), count + len(y)
        values, steps = training.pack()
        return values, {"loss": loss / count, "num-examples": count, "steps": steps}

    def _batches(
        self, schedule: Schedule
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        batches = noisy_batches(*self._data_key)
        for step in schedule.steps:
            x, y, e = batches.get(step=step, **schedule.common)
            yield self.compute.move_batch(x), y.to(self.compute.device), self.compute.move_batch(e)

    # -------------------------------------------------------------------- measurements

    def noisy_accuracy(
        self, generator: torch.Tensor, bound: float, seed: int, variant: str
    ) -> dict[str, int | float]:
        """Return the accuracy on the noisy public validation set (Figure 4)."""
        noise = NoiseGenerator(generator, bound)
        right, images = 0, self.data.validation
        for start in range(0, len(images), 500):
            x, y = images.batch(np.arange(start, min(start + 500, len(images))))
            e = torch.randn(x.shape, generator=torch_generator(seed, "validation", start))
            with torch.no_grad():
                noisy = noise(x, e)
            right += int((self.predict(noisy, variant) == y.numpy()).sum())
        return {"accuracy": right / len(images), "num-examples": len(images)}

    def predict(self, images: torch.Tensor, variant: str) -> np.ndarray:
        """Return the predicted class of each image (N, C, H, W) as int64 (N,)."""
        return predict(self.model(variant), images, self.compute)

    def submitted(self, images: torch.Tensor, predictions: np.ndarray) -> dict[str, str]:
        """Return a signature under predictions that leave, and note them; empty in a simulation."""
        key = self.assignment.private_key
        if key is None:
            return {}
        given, said = submissions.digest(images.numpy()), submissions.digest(predictions)
        text = submissions.statement(self.assignment.run, given, said, len(predictions))
        before = json.loads(self.vault.read(SUBMITTED) or b"[]")
        note = {**json.loads(text), "at": timestamp()}
        self.vault.write(SUBMITTED, json.dumps([*before, note], indent=2).encode())
        return submissions.signed(key, text)

    def density(self, seed: int, variant: str, sample: int = 512) -> dict[str, int | float]:
        """Return mean and variance of the Gaussian that best fits what the model implies.

        Eq. (1) speaks of a distribution N(μ_m, σ_m²) that a model has in mind, without saying
        how to find it. Our reading: a classifier with logits f implies the density
        ``p(x) ∝ Σ_k exp f_k(x)``; its score ``∇ₓ log p`` is regressed on x over public
        validation images, since the score of a Gaussian is ``−(x − μ_m)/σ_m²``. The variance
        is negative where no Gaussian fits.
        """
        images = self.data.validation
        chosen = numpy_generator(seed, "density").permutation(len(images))[:sample]
        x = self.compute.move_batch(images.batch(chosen)[0]).requires_grad_()
        implied = torch.logsumexp(self.compute.forward(self.model(variant), x), 1).sum()
        score = torch.autograd.grad(implied, x)[0].double().flatten()
        flat = x.detach().double().flatten()
        spread = (flat - flat.mean()).square().sum()
        slope = float(((flat - flat.mean()) * score).sum() / spread) if spread > 0 else 0.0
        # A model that implies no slope at all, or images that are all of one grey: nothing fits.
        slope = slope if abs(slope) > 1e-12 else 1e-12
        mean = float(flat.mean() - score.mean() / slope)
        return {"mean": mean, "variance": -1 / slope, "num-examples": len(chosen)}


class Schedule:
    """Which batches a request is about.

    Parameters
    ----------
    config : mapping
        Of the request: ``seed``, ``epoch``, ``batch`` (size), ``noise``, ``visitor``, and
        ``step`` and ``count``, the first batch and the number of them.
    """

    def __init__(self, config: dict[str, int | str]) -> None:
        self.common: dict = {
            "seed": int(config["seed"]),
            "epoch": int(config["epoch"]),
            "size": int(config["batch"]),
            "noise": str(config["noise"]),
            "visitor": int(config["visitor"]),
        }
        self.steps = range(int(config["step"]), int(config["step"]) + int(config["count"]))


def attacked(name: str, values: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays that a hostile participant sends in place of the honest ``values``.

    Parameters
    ----------
    name : str
        An attack of ``pudica.clients.protocol.Attack``.
    values : ndarray
        The honest gradient, or the honest state after a visit.
    reference : ndarray
        What the attack is measured from: zeros for a gradient, the state before a visit.
    """
    attacks: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "nan": lambda: {"values": np.full_like(values, np.nan)},
        "huge": lambda: {"values": reference + np.float32(1e6) * np.ones_like(values)},
        "sign-flip": lambda: {"values": reference - np.float32(1000) * (values - reference)},
        "wrong-shape": lambda: {"values": values.reshape(-1)[:-1]},
        "wrong-key": lambda: {"surprise": values},
        "empty": dict,
    }
    return attacks[name]()
