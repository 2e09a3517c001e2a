"""FaceMix from joining to the last answer, case after case."""

from __future__ import annotations

from pudica.models.files import save_tensors
from pudica.models.packing import select_prefix
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.releases import keep
from pudica.strategies.core.session import run_cases
from pudica.strategies.facemix.config import FacemixConfig
from pudica.strategies.facemix.experiment import FacemixExperiment
from pudica.strategies.facemix.ledger import releases
from pudica.strategies.facemix.session import Session

MODEL = "model.safetensors"


def infer_mixed(cohort: Cohort, experiment: FacemixExperiment) -> None:
    """Run all cases: join, train behind the shield, serve."""
    data = experiment.load_data()

    def run_case(case: str, settings: FacemixConfig) -> None:
        _run(Session(cohort, experiment, case, settings, data))

    cases, minimum = experiment.facemix.each_case(), experiment.facemix.min_edges
    run_cases(cohort, experiment, minimum, cases, run_case)


def _run(session: Session) -> None:
    """Run one case, from wherever a run that was stopped had got to."""
    recorder, case, strategy = session.recorder, session.case, session.strategy
    with recorder.timed(f"join/{case}"):
        session.join()
        keep(recorder, releases(session))
    with recorder.timed(f"training/{case}"):
        _train(session)
    with recorder.timed(f"serving/{case}"):
        strategy.serve(session.cohort.grid)
    _keep_model(session)
    recorder.forget(strategy.task)


def _train(session: Session) -> None:
    """Train the model, or take it as it was when that was done before a kill."""
    recorder, strategy = session.recorder, session.strategy
    task, epochs = strategy.task, session.settings.training.epochs
    if recorder.is_finished(task):
        strategy.load_model(select_prefix(f"{task}/", recorder.arrays))
        strategy.round = epochs
        return
    strategy.start(session.cohort.grid, num_rounds=epochs)
    recorder.forget(task)
    kept = strategy.model_tensors().items()
    recorder.arrays |= {f"{task}/{key}": value for key, value in kept}
    recorder.finish(task)


def _keep_model(session: Session) -> None:
    """Put the model into a file, with all that is needed to use or attack it."""
    settings, images = session.settings, session.data.train
    note = {
        "model": settings.model,
        "stages": settings.stages,
        "shield": session.model.shield.config.model_dump(mode="json"),
        "attributes": session.data.attributes,
        "image": session.data.shape,
        "mean": images.mean.flatten().tolist(),
        "std": images.std.flatten().tolist(),
    }
    path = session.recorder.artefact(f"{session.case}/{MODEL}")
    save_tensors(path, session.model.state_dict(), note)
