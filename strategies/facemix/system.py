"""FaceMix from joining to the last answer, case after case."""

from __future__ import annotations

from pudica.models.files import save_tensors
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import gather
from pudica.strategies.core.releases import keep
from pudica.strategies.facemix.anonymising import Anonymising
from pudica.strategies.facemix.costs import log_costs
from pudica.strategies.facemix.experiment import FacemixExperiment
from pudica.strategies.facemix.ledger import releases
from pudica.strategies.facemix.serving import Serving
from pudica.strategies.facemix.session import Session
from pudica.strategies.facemix.together import Together
from pudica.strategies.facemix.training import Central, Learning

MODEL = "model.safetensors"


def infer_mixed(cohort: Cohort, experiment: FacemixExperiment) -> None:
    """Run all cases: join, train behind the shield, serve."""
    recorder = cohort.run_recorder
    data = experiment.load_data()
    with recorder.timed("join"):
        nodes = gather(cohort, experiment.names(), experiment.facemix.min_edges)
    for case, settings in experiment.facemix.each_case().items():
        if not recorder.is_finished(f"case/{case}"):
            cohort.nodes = dict(nodes)
            _run(Session(cohort, experiment, case, settings, data))


def _run(session: Session) -> None:
    """Run one case, from wherever a run that was stopped had got to."""
    recorder, case = session.recorder, session.case
    learning = _learning(session)
    with recorder.timed(f"join/{case}"):
        session.join()
        keep(recorder, releases(session))
    with recorder.timed(f"training/{case}"):
        if recorder.is_finished(learning.task):
            learning.recall()
        else:
            learning.train()
    log_costs(session)
    with recorder.timed(f"serving/{case}"):
        Serving(session).run()
    _keep_model(session)
    recorder.forget(learning.task)
    recorder.finish(f"case/{case}")


def _learning(session: Session) -> Learning:
    if session.settings.train == "split":
        return Together(session)
    return Anonymising(session) if session.settings.anonymiser else Central(session)


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
