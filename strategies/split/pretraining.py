"""Weights to start from, learnt by the cloud on public data."""

from __future__ import annotations

import torch

from pudica import models
from pudica.models.compute import Compute
from pudica.models.files import save_tensors
from pudica.models.packing import select_prefix
from pudica.models.randomness import derive
from pudica.models.training import Training, TrainingConfig
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.session import CLOUD
from pudica.strategies.split.config import PRETRAINED, SplitConfig
from pudica.strategies.split.experiment import SplitExperiment

TASK = "pretraining"
STAGE = "public pretraining"


def pretrain(experiment: SplitExperiment, recorder: Recorder) -> None:
    """Train every model on the public data that a case starts from, once each."""
    pretraining = experiment.split.pretraining
    if pretraining is None:
        return
    cases = experiment.split.each_case().values()
    for name in dict.fromkeys(case.model for case in cases if case.weights == PRETRAINED):
        if not recorder.is_finished(f"{TASK}/{name}"):
            with recorder.timed(STAGE):
                _train(experiment, recorder, name, pretraining.training)


def load_pretrained(recorder: Recorder, settings: SplitConfig) -> dict[str, torch.Tensor]:
    """Return the weights that a case starts from."""
    return select_prefix(f"{TASK}/{settings.model}/best/", recorder.arrays)


def _train(
    experiment: SplitExperiment, recorder: Recorder, name: str, config: TrainingConfig
) -> None:
    data, task = experiment.load_public(), f"{TASK}/{name}"
    seed = derive(experiment.seed, TASK, name)
    model = models.build_for(name, data.shape, num_classes=data.num_classes, seed=seed)
    training = Training(model, config, seed, Compute(experiment.client))
    if position := recorder.position(task):
        kept = select_prefix(f"{task}/", recorder.arrays)
        training.restore(kept, position["losses"], position["accuracies"])
    while not training.finished:
        training.run_epoch(data.train, data.validation)
        for metric, values in (("loss", training.losses), ("accuracy", training.accuracies)):
            recorder.log(TASK, metric, values[-1], node=CLOUD, round=training.epoch, model=name)
        recorder.progress(STAGE, training.epoch, config.epochs, "epoch")
        tensors = {f"{task}/{key}": value for key, value in training.tensors().items()}
        recorder.save_checkpoint(
            task, tensors, losses=training.losses, accuracies=training.accuracies
        )
    recorder.forget(task)
    recorder.arrays |= {f"{task}/best/{key}": value for key, value in training.best.items()}
    save_tensors(recorder.artefact(f"pretrained-{name}.safetensors"), training.best, {}, 0o644)
    recorder.finish(task)
