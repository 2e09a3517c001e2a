"""What an adversary has that holds a trained model, and asks which images it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from pudica import models
from pudica.analysis.runs import Run
from pudica.clients.data import DataConfig, ImageSet, Splits, load_once
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors
from pudica.models.randomness import derive, numpy_generator
from pudica.models.training import Training, TrainingConfig
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.dlmt.config import DlmtConfig

MODEL = "model.safetensors"
BATCH = 250
"""Images of a batch where a model is only applied."""
DISGUISED = "images are disguised, and without the key the adversary can't disguise candidates"

Classifier = Callable[[torch.Tensor], torch.Tensor]
"""From normalised images (B, C, H, W) to logits (B, classes)."""
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ModelView:
    """What an adversary has that holds a trained model.

    Attributes
    ----------
    name : str
        Of run and case.
    model : callable
        The trained model, from normalised images (B, C, H, W) to logits (B, classes).
    train : callable
        ``train(images, seed)`` trains a shadow model on other images as this one was trained, as
        far as the adversary knows how, and returns it.
    build : callable
        ``build(seed)`` returns the whole model untrained, without a shield.
    own : ImageSet
        The adversary's own images, of the same kind, on which the model was not trained.
    candidates : ImageSet
        Images of which some were training images; their order, and their rows, do not say which.
    device : Compute
        Where the adversary computes: like the run's nodes.
    """

    name: str
    model: Classifier
    train: Callable[[ImageSet, int], Classifier]
    build: Callable[[int], nn.Module]
    own: ImageSet
    candidates: ImageSet
    device: Compute


@dataclass(frozen=True)
class ModelTarget:
    """A view, and the truth by which an attack is judged.

    Attributes
    ----------
    view : ModelView
    members : bool ndarray of shape (n,)
        Which candidates were training images.
    """

    view: ModelView
    members: np.ndarray


@dataclass(frozen=True)
class NoModel:
    """A case whose model can't be attacked, and why."""

    reason: str


@dataclass(frozen=True)
class Candidates:
    """The images of a :class:`ModelTarget`: the adversary's own, and the shuffled candidates."""

    own: ImageSet
    images: ImageSet
    members: np.ndarray


def choose_candidates(train: ImageSet, test: ImageSet, count: int, seed: int) -> Candidates:
    """Draw candidates: as many training images as others, in a random order.

    Half of the test part is the adversary's own, the others that were not trained on are of the
    other half.

    Parameters
    ----------
    count : int
        Of each kind, at most.
    """
    draws = numpy_generator(seed, "candidates")
    own, others = np.array_split(draws.permutation(len(test)), 2)
    count = min(count, len(others), len(train))
    chosen = draws.permutation(len(train))[:count]
    parts = [train.subset(chosen), test.subset(others[:count])]
    order = draws.permutation(2 * count)
    rows, labels = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("rows", "labels")
    )
    # A copy, numbered anew: rows of the data set would say of which part they are.
    copied = replace(
        train,
        images=np.take(train.images, rows, axis=0),
        rows=np.arange(len(rows)),
        labels=labels,
        attributes=np.zeros((0, 0), np.int64),
    )
    return Candidates(test.subset(own), copied, order < count)


@torch.no_grad()
def compute_logits(model: Classifier, images: ImageSet, device: Compute) -> torch.Tensor:
    """Return a model's logits of all images, (n, classes), on the CPU."""
    parts = np.array_split(np.arange(len(images)), -(-len(images) // BATCH) or 1)
    return torch.cat([model(device.move_batch(images.batch(part)[0])).cpu() for part in parts])


def load_run_data(run: Run, **changes: object) -> Splits:
    """Return the images of a run's nodes; ``changes`` of the data's settings."""
    config = run.section("data", DataConfig).model_copy(update=changes)
    return load_once(config.model_dump_json(), derive(int(run.info["seed"]), "data"))


def build_whole(name: str, data: Splits, seed: int) -> nn.Module:
    """Return an untrained model for a run's images."""
    return models.build_for(name, data.shape, num_classes=data.num_classes, seed=seed)


def load_run_model(run: Run, case: str) -> tuple[Tensors, dict[str, object]]:
    """Return the tensors of a case's model, and what is noted with them.

    Raises
    ------
    RequestError
        The case is not done yet.
    """
    kept = load_tensors(run.directory / case / MODEL)
    if kept is None:
        raise RequestError(f"{run.name}: case '{case}' is not done yet: it has no {MODEL}")
    return kept


# ---------------------------------------------------------------------------------- DLMT


def dlmt_model_target(run: Run, case: str, images: int, seed: int) -> ModelTarget | NoModel:
    """Return the averaged model of a federated case of DLMT without a disguise.

    Shadow models are trained by one owner of all images, with the owners' schedule.

    Parameters
    ----------
    images : int
        Candidates of each kind, at most.

    Raises
    ------
    RequestError
        The case is not done yet.
    """
    settings = run.section("dlmt", DlmtConfig).each_case()[case]
    data = load_run_data(run, normalize="none", partition=settings.partition)
    if settings.shield or data.key:
        return NoModel(DISGUISED)
    if settings.train == "central":
        return NoModel("the cloud has the training images themselves, and need not ask")
    tensors, note = load_run_model(run, case)
    mean, std = (torch.tensor(note[name])[:, None, None] for name in ("mean", "std"))
    train, test = (replace(part, mean=mean, std=std) for part in (data.train, data.test))
    start_seed = derive(int(run.info["seed"]), "weights")
    build = partial(build_whole, settings.model, data)
    device = Compute(run.section("client", ClientConfig))
    model = device.move_model(build(start_seed))
    model.load_state_dict(tensors)
    found = choose_candidates(train, test, images, seed)
    view = ModelView(
        name=f"{run.name}: case '{case}'",
        model=model.eval(),
        train=_Shadows(partial(build, start_seed), settings.training, device),
        build=build,
        own=found.own,
        candidates=found.images,
        device=device,
    )
    return ModelTarget(view, found.members)


@dataclass(frozen=True)
class _Shadows:
    """Trains a shadow of a whole model, from the weights that it began with."""

    start: Callable[[], nn.Module]
    config: TrainingConfig
    device: Compute

    def __call__(self, images: ImageSet, seed: int) -> Classifier:
        training = Training(self.start(), self.config, seed, self.device)
        for _ in range(self.config.epochs):
            training.train_epoch(images)
        return training.model.eval()
