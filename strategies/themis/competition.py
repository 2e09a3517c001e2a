"""A THEMIS competition from joining to leaderboard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pudica.models.generator import NoiseGenerator
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.evaluation import Evaluation
from pudica.strategies.themis.experiment import ThemisExperiment
from pudica.strategies.themis.joining import join
from pudica.strategies.themis.local import require_models, train_models
from pudica.strategies.themis.organiser import Organiser
from pudica.strategies.themis.stages import Stages


def compete(cohort: Cohort, experiment: ThemisExperiment) -> None:
    """Run the whole competition: join, local training, noise generator, evaluation."""
    organiser, recorder = Organiser(cohort, experiment), cohort.run_recorder
    evaluation, stages = Evaluation(organiser), Stages(organiser)
    with stages.during("join"):
        with recorder.timed("join"):
            if stages.closes_later("join") and not stages.is_closed("join"):
                stages.admit_until("join")
            else:
                join(organiser)
        with recorder.timed("local training"), stages.accepting("join"):
            train_models(organiser)
    require_models(organiser)
    with recorder.timed("evaluation"):
        evaluation.measure_shared()
    for case, settings in experiment.themis.each_case().items():
        with stages.during("noise"), recorder.timed(f"noise generator/{case}"):
            is_closed = partial(stages.is_closed, "noise")
            generator = train_generator(organiser, case, settings, is_closed)
        with stages.during("test"), recorder.timed(f"evaluation/{case}"):
            with stages.accepting("test"):
                evaluation.measure_case(case, generator)
            evaluation.publish(case, generator)


def train_generator(
    organiser: Organiser, case: str, settings: ThemisConfig, is_closed: Callable[[], bool]
) -> NoiseGenerator:
    """Train one case's generator; return the finished one if the run is resumed."""
    task, recorder = f"generator/{case}", organiser.recorder
    if not recorder.is_finished(task):
        strategy = organiser.strategy(case, settings)
        strategy.is_closed = is_closed
        strategy.start(organiser.cohort.grid, num_rounds=settings.epochs)
        recorder.arrays[task] = torch.from_numpy(strategy.generator().pack())
        recorder.forget(task)
        recorder.finish(task)
    return NoiseGenerator(recorder.arrays[task][:2], settings.M)
