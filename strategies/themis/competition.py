"""A THEMIS competition from joining to leaderboard."""

from __future__ import annotations

import torch
from flwr.serverapp import Grid

from models.generator import NoiseGenerator
from strategies.recorder import Recorder
from strategies.themis.config import ThemisConfig
from strategies.themis.evaluation import Evaluation
from strategies.themis.experiment import ThemisExperiment
from strategies.themis.generator import GeneratorStage
from strategies.themis.joining import join
from strategies.themis.local import train_models
from strategies.themis.organiser import Organiser
from strategies.themis.publication import Publication


def compete(grid: Grid, experiment: ThemisExperiment, recorder: Recorder) -> None:
    """Run the whole competition: join, local training, noise generator, evaluation."""
    organiser = Organiser(grid, experiment, recorder)
    evaluation = Evaluation(organiser)
    with recorder.timed("join"):
        join(organiser)
    with recorder.timed("local training"):
        train_models(organiser)
    with recorder.timed("evaluation"):
        evaluation.shared()
    for case, settings in experiment.themis.each_case().items():
        with recorder.timed(f"noise generator/{case}"):
            generator = train_generator(organiser, case, settings)
        with recorder.timed(f"evaluation/{case}"):
            evaluation.case(case, generator)
            Publication(organiser, evaluation, case, generator).publish()


def train_generator(organiser: Organiser, case: str, settings: ThemisConfig) -> NoiseGenerator:
    """Train one case's generator, or return it if that was done before a kill."""
    task, recorder = f"generator/{case}", organiser.recorder
    if not recorder.finished(task):
        generator = GeneratorStage(organiser, case, settings).train()
        recorder.arrays[task] = torch.from_numpy(generator.packed())
        recorder.finish(task)
    return NoiseGenerator(recorder.arrays[task][:2], settings.M)
