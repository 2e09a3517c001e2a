"""A participant of THEMIS: private model, public data, replies to the organiser."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.clients.data.examples import Examples, as_examples, hash_classes
from pudica.clients.runtime.role import Arrays, Config, Role
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.generator import GeneratorTraining, NoiseGenerator
from pudica.models.naming import validate_node_name
from pudica.models.randomness import derive, numpy_generator, torch_generator
from pudica.models.training import Training, TrainingConfig, predict
from pudica.models.trial import count_classes

Images = ImageSet | Examples
Metrics = dict[str, int | float]
Update = tuple[np.ndarray, Metrics]
NoisyBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
TrainFunction = Callable[[nn.Module, Any], None]

HONEST, CHEATING = "honest", "cheating"
TRIED = 2
"""Images on which a model is tried when it joins."""
EVALUATION_BATCH = 500
"""Noisy validation images that share a seed; another number is other noise."""

_last_batches: WeakKeyDictionary[Images, tuple[tuple[int | str, ...], NoisyBatch]]
_last_batches = WeakKeyDictionary()


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the training images in one generator epoch, the same for all."""
    return numpy_generator(seed, "order", epoch).permutation(size)


def draw_noisy_batch(images: Images, config: Config, step: int) -> NoisyBatch:
    """Return a training batch of the generator, by a request's config, and the noise on it.

    The participants of one process share the last batch: in ``joint`` mode all of them get the
    same one, so it is drawn once.

    Returns
    -------
    x, y, e : Tensor
        Of shapes (B, C, H, W), (B,), and (B, C, H, W), or (1, C, H, W) for noise ``per-batch``.
    """
    seed, epoch, size = config["seed"], config["epoch"], config["batch"]
    noise, visitor = config["noise"], config["visitor"]
    key = seed, epoch, step, size, noise, visitor
    last = _last_batches.get(images)
    if last is not None and last[0] == key:
        return last[1]
    order = epoch_order(len(images), seed, epoch)
    x, y = images.batch(order[step * size : (step + 1) * size])
    shape = x.shape if noise == "per-image" else (1, *x.shape[1:])
    e = torch.randn(shape, generator=torch_generator(seed, "noise", epoch, step, visitor))
    _last_batches[images] = key, (x, y, e)  # at once: other threads may ask for other batches
    return x, y, e


class Participant(Role):
    """A participant of a competition, the client of a :class:`.Themis` strategy.

    Model and labels stay here: what leaves are gradients with respect to the noise, losses,
    accuracies, and predictions of images that the organiser releases.

    Parameters
    ----------
    model : Module
        Maps images (B, C, H, W) to logits (B, classes). Its weights are not changed, unless
        ``training`` says so.
    train, validation : Dataset
        Map-style, of pairs of an image, a float tensor (C, H, W), and its class. All participants
        have the same training set in the same order, the public one.
    name : str, optional
        On the leaderboard; by default the node's partition.
    training : TrainingConfig or callable, optional
        Train the model before its first use, once in a run: by our schedule, or by
        ``training(model, train)``.
    cheating : Module, optional
        Used if the strategy lists this participant among its ``cheaters``.
    seed : int
        Of the training.
    compute : ComputeConfig, optional
        Device, threads and precision.

    Raises
    ------
    DataError
        A data set that is empty, or yields no pairs.
    RequestError
        A model whose output is no logits.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        validation: Any,
        *,
        name: str | None = None,
        training: TrainingConfig | TrainFunction | None = None,
        cheating: nn.Module | None = None,
        seed: int = 0,
        compute: ComputeConfig | None = None,
    ) -> None:
        self.name = validate_node_name(name) if name else None
        self.train_set: Images = as_examples(train, "train")
        self.validation_set: Images = as_examples(validation, "validation")
        if training is not None and not (
            callable(training) or isinstance(training, TrainingConfig)
        ):
            raise RequestError(
                "training: must be a TrainingConfig, or a function of a model and a data set, is "
                f"{training!r}"
            )
        self.training, self.seed = training, seed
        self.compute = Compute(compute or ComputeConfig())
        self._models = {HONEST: model} | ({CHEATING: cheating} if cheating else {})
        self._frozen: dict[str, nn.Module] = {}
        count = min(TRIED, len(self.validation_set))
        self.classes = count_classes(model, *self.validation_set.batch(np.arange(count)))

    def describe_data(self) -> dict[str, int | str]:
        """Return what the organiser learns of the data."""
        shape = tuple(self.train_set.batch(np.arange(1))[0].shape[1:])
        about: dict[str, int | str] = {
            "classes": self.classes,
            "names": hash_classes(self.train_set),
            "key": "",
            "shape": "x".join(map(str, shape)),
            "content": self.train_set.content if isinstance(self.train_set, Examples) else "",
            "train": len(self.train_set),
            "validation": len(self.validation_set),
            "test": 0,
        }
        return about | ({"name": self.name} if self.name else {})

    def model(self, variant: str) -> nn.Module:
        """Return the trained model, frozen and in evaluation mode.

        Raises
        ------
        RuntimeError
            There is none of this variant.
        """
        if variant not in self._frozen:
            if variant not in self._models:
                raise RuntimeError(
                    f"this participant has no {variant} model; Participant(..., {variant}=…)"
                )
            model = self._load_or_train(self._models[variant], variant)
            self._frozen[variant] = self.compute.move_model(model.requires_grad_(False).eval())
        return self._frozen[variant]

    def _load_or_train(self, model: nn.Module, variant: str) -> nn.Module:
        if self.training is None:
            return model
        saved, fingerprint = self.vault.load(f"model-{variant}"), self._fingerprint_training(model)
        if saved and saved[1]["of"] == fingerprint:
            model.load_state_dict(saved[0])
            return model
        if isinstance(self.training, TrainingConfig):
            seed = derive(self.seed, "training")
            training = Training(model, self.training, seed, self.compute)
            while not training.finished:
                training.run_epoch(self.train_set, self.validation_set)  # type: ignore[arg-type]
            model.load_state_dict(training.best)
        else:
            dataset = self.train_set
            self.training(model, dataset.dataset if isinstance(dataset, Examples) else dataset)
        self.vault.save(f"model-{variant}", dict(model.state_dict()), {"of": fingerprint})
        return model

    def _fingerprint_training(self, model: nn.Module) -> str:
        """Return a hash of the untrained model and of how to train it."""
        how = getattr(self.training, "__qualname__", repr(self.training))
        digest = hashlib.blake2b(f"{model}\n{how}\n{self.seed}".encode(), digest_size=16)
        for tensor in model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------- the noise generator

    def gradient(self, config: Config, arrays: Arrays) -> Update:
        """Return the gradient of this model's loss on the noisy batches of one request."""
        generator = torch.stack([arrays[name] for name in protocol.GENERATOR])
        noise = NoiseGenerator(generator.to(self.compute.device), config["bound"])
        model, loss, count = self.model(config["variant"]), 0.0, 0
        total = torch.zeros_like(generator, device=self.compute.device)
        for x, y, e in self._batches(config):
            part, part_loss = noise.task_gradient(model, x, y, e, self.compute)
            total, loss = total + part * len(y), loss + float(part_loss) * len(y)
            count += len(y)
        return (total / count).cpu().numpy(), {"loss": loss / count, "num-examples": count}

    def visit(self, config: Config, state: torch.Tensor) -> Update:
        """Return the generator's state after Adam steps on this model's own loss.

        ``−log mean σ² + λ·CE``: the per-model step of the authors' code.

        Parameters
        ----------
        state : Tensor of shape (6, C, H, W)
            As of :meth:`pudica.models.generator.GeneratorTraining.pack`.
        """
        training = GeneratorTraining.unpack(
            state.to(self.compute.device), config["steps"], config["bound"], config["learning-rate"]
        )
        model, loss, count = self.model(config["variant"]), 0.0, 0
        for x, y, e in self._batches(config):
            gradient, part_loss = training.generator.task_gradient(model, x, y, e, self.compute)
            training.step(config["weight"] * gradient)
            loss, count = loss + float(part_loss) * len(y), count + len(y)
        values, steps = training.pack()
        return values, {"loss": loss / count, "num-examples": count, "steps": steps}

    def _batches(self, config: Config) -> Iterator[NoisyBatch]:
        for step in range(config["step"], config["step"] + config["count"]):
            x, y, e = draw_noisy_batch(self.train_set, config, step)
            yield self.compute.move_batch(x), y.to(self.compute.device), self.compute.move_batch(e)

    # -------------------------------------------------------------------- measurements

    def noisy_accuracy(
        self, generator: torch.Tensor, bound: float, seed: int, variant: str
    ) -> Metrics:
        """Return the accuracy on the noisy public validation set (Figure 4)."""
        noise = NoiseGenerator(generator, bound)
        correct, images = 0, self.validation_set
        for start in range(0, len(images), EVALUATION_BATCH):
            x, y = images.batch(np.arange(start, min(start + EVALUATION_BATCH, len(images))))
            e = torch.randn(x.shape, generator=torch_generator(seed, "validation", start))
            with torch.no_grad():
                noisy = noise(x, e)
            correct += int((self.predict(noisy, variant) == y.numpy()).sum())
        return {"accuracy": correct / len(images), "num-examples": len(images)}

    def predict(self, images: torch.Tensor, variant: str) -> np.ndarray:
        """Return the predicted class of each image (N, C, H, W) as int64 (N,)."""
        return predict(self.model(variant), images, self.compute)

    def sign(self, images: torch.Tensor, predictions: np.ndarray) -> dict[str, str]:  # noqa: ARG002
        """Return the signature to send with predictions; here there is none."""
        return {}

    def density(self, seed: int, variant: str, sample: int = 512) -> Metrics:
        """Return mean and variance of the Gaussian that best fits what the model implies.

        Eq. (1) speaks of a distribution N(μ_m, σ_m²) that a model has in mind, without saying
        how to find it. Our reading: a classifier with logits f implies the density
        ``p(x) ∝ Σ_k exp f_k(x)``; its score ``∇ₓ log p`` is regressed on x over public
        validation images, since the score of a Gaussian is ``−(x − μ_m)/σ_m²``. The variance
        is negative where no Gaussian fits.
        """
        images = self.validation_set
        chosen = numpy_generator(seed, "density").permutation(len(images))[:sample]
        x = self.compute.move_batch(images.batch(chosen)[0]).requires_grad_()
        implied = torch.logsumexp(self.compute.forward(self.model(variant), x), 1).sum()
        score = torch.autograd.grad(implied, x)[0].double().flatten()
        flat = x.detach().double().flatten()
        spread = (flat - flat.mean()).square().sum()
        slope = float(((flat - flat.mean()) * score).sum() / spread) if spread > 0 else 0.0
        # Nothing fits a model without any slope, or images of a single grey.
        slope = slope if abs(slope) > 1e-12 else 1e-12
        mean = float(flat.mean() - score.mean() / slope)
        return {"mean": mean, "variance": -1 / slope, "num-examples": len(chosen)}


# ------------------------------------------------------------------------ message handlers


def answer_gradient(participant: Participant, config: Config, arrays: Arrays) -> RecordDict:
    """Return the gradient on the noise generator."""
    values, metrics = participant.gradient(config, arrays)
    return build_reply(config.get("attack"), values, np.zeros_like(values), metrics)


def answer_visit(participant: Participant, config: Config, arrays: Arrays) -> RecordDict:
    """Take local steps with the noise generator."""
    generator = np.stack([arrays[name].numpy() for name in protocol.GENERATOR])
    moments = protocol.unpack_moments(config[protocol.MOMENTS], generator.shape[1:])
    state = np.concatenate([generator, moments])
    values, metrics = participant.visit(config, torch.from_numpy(state))
    return build_reply(config.get("attack"), values, state, metrics)


def build_reply(
    attack: str | None, values: np.ndarray, reference: np.ndarray, metrics: Metrics
) -> RecordDict:
    """Return an honest reply, unless the experiment makes this participant hostile.

    Parameters
    ----------
    attack : str or None
        Of ``pudica.clients.assignments.Attack``.
    values : ndarray
        The honest gradient, or the honest state after a visit.
    reference : ndarray
        What the attack is measured from: zeros for a gradient, the state before a visit.
    """
    match attack:
        case None:
            pass
        case "empty":
            return protocol.reply(metrics)
        case "wrong-key":
            return protocol.reply(metrics, surprise=values)
        case "wrong-shape":
            mu, rho = (each.reshape(-1)[:-1] for each in values[:2])
            return protocol.reply(metrics, mu=mu, rho=rho)
        case "nan":
            values = np.full_like(values, np.nan)
        case "huge":
            values = reference + np.float32(1e6)
        case "sign-flip":
            values = reference - np.float32(1000) * (values - reference)
        case _:
            raise ValueError(f"there is no attack '{attack}'")
    return protocol.generator_reply(values, metrics)


def answer_noisy(participant: Participant, config: Config, arrays: Arrays) -> RecordDict:
    """Measure the model on the noisy public validation set."""
    generator = torch.stack([arrays[name] for name in protocol.GENERATOR])
    settings = config["bound"], config["seed"], config["variant"]
    return protocol.reply(participant.noisy_accuracy(generator, *settings))


def answer_density(participant: Participant, config: Config, _: Arrays) -> RecordDict:
    """Measure what Eq. (1) needs to know of the model."""
    return protocol.reply(participant.density(config["seed"], config["variant"]))


def answer_predict(participant: Participant, config: Config, arrays: Arrays) -> RecordDict:
    """Predict the classes of released images."""
    predictions = participant.predict(arrays["images"], config["variant"])
    reply = protocol.reply({"num-examples": len(predictions)}, predictions=predictions)
    if signature := participant.sign(arrays["images"], predictions):
        reply["config"] = ConfigRecord(dict(signature))
    return reply


Participant.handlers = {
    protocol.GRADIENT: answer_gradient,
    protocol.VISIT: answer_visit,
    protocol.NOISY: answer_noisy,
    protocol.DENSITY: answer_density,
    protocol.PREDICT: answer_predict,
}
