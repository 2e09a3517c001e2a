"""DLMT from joining to the last measurement, case after case."""

from __future__ import annotations

import numpy as np
import torch

from pudica.clients.shields.disguises import parse_notation
from pudica.clients.shields.disguises.breaks import (
    guess_offsets,
    invert_affine,
    is_affine,
    recover_factors,
)
from pudica.models.cut import count_flops
from pudica.models.files import save_tensors
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.releases import keep
from pudica.strategies.core.session import run_cases
from pudica.strategies.dlmt.central import Central, Collection, Received, file_of
from pudica.strategies.dlmt.config import DlmtConfig
from pudica.strategies.dlmt.experiment import DlmtExperiment
from pudica.strategies.dlmt.federated import Federated
from pudica.strategies.dlmt.learning import TRAINING, Learning, find_position
from pudica.strategies.dlmt.ledger import releases
from pudica.strategies.dlmt.measures import MEASURES, keep_examiner, measure
from pudica.strategies.dlmt.session import Session

SHOWN, SEEN = 8, 400
"""Images that are kept to look at, and that the cloud tries to undo their disguise with."""


def learn_disguised(cohort: Cohort, experiment: DlmtExperiment) -> None:
    """Run all cases: join, train on disguised images, measure; the examiner's case first."""
    cases, examining = experiment.dlmt.each_case(), experiment.dlmt.examining()

    def run_case(case: str, settings: DlmtConfig) -> None:
        Case(Session(cohort, experiment, case, settings), examining == case).run()

    ordered = {case: cases[case] for case in sorted(cases, key=lambda name: name != examining)}
    run_cases(cohort, experiment, experiment.dlmt.min_owners, ordered, run_case)


class Case:
    """One case, from joining to its model's file.

    Parameters
    ----------
    session : Session
    examines : bool
        Whether its model is the examiner of the others.
    """

    def __init__(self, session: Session, examines: bool) -> None:
        self.session = session
        self.examines = examines
        self.settings = session.settings
        self.recorder = session.recorder

    def run(self) -> None:
        """Train and measure, from wherever a run that was stopped had got to."""
        session, case = self.session, self.session.case
        with self.recorder.timed(f"join/{case}"):
            session.join(self._last_round())
            keep(self.recorder, releases(session))
            session.normalise()
        with self.recorder.timed(f"training/{case}"):
            learning = self._trained()
        model = learning.trained()
        if self.examines:
            keep_examiner(session, model)
        if self.settings.measures and self.settings.shield:
            with self.recorder.timed(f"measures/{case}"):
                measure(session, model)
            session.note_dropouts(MEASURES)
        # A disguise is no network: where the cloud trains, owners compute none.
        federated = self.settings.train == "federated"
        macs = count_flops(learning.model, session.image) / 2 if federated else 0.0
        session.log("costs", "edge_macs", macs)
        parameters = sum(parameter.numel() for parameter in learning.model.parameters())
        session.log("costs", "edge_parameters", parameters if federated else 0)
        self._keep_model(learning)
        file_of(session).unlink(missing_ok=True)
        self.recorder.forget(learning.task)

    def _last_round(self) -> int:
        """Return the round to which owners of a resumed run go back, -1 if it begins."""
        task = self.session.task(TRAINING)
        if self.recorder.is_finished(task):
            return self.settings.rounds - 1
        return int(find_position(self.recorder, task).get("round", 0)) - 1

    def _trained(self) -> Learning:
        """Return what has trained, now or before a kill."""
        done = self.recorder.is_finished(self.session.task(TRAINING))
        learning: Learning
        if self.settings.train == "federated":
            learning = Federated(self.session)
        else:
            nothing = Received(np.zeros((0, *self.session.image), np.uint8), np.zeros(0, np.int64))
            learning = Central(self.session, nothing if done else self._received())
        if done:
            learning.recall()
        else:
            learning.train()
        return learning

    def _keep_model(self, learning: Learning) -> None:
        """Put the model into a file, with all that is needed to use it but the key."""
        session, settings = self.session, self.settings
        note = {
            "model": settings.model,
            "classes": session.classes,
            "image": session.image,
            "disguise": settings.shield,
            "values": [session.span.low, session.span.high],
            "mean": session.normalisation[0].tolist(),
            "std": session.normalisation[1].tolist(),
        }
        path = self.recorder.artefact(f"{session.case}/model.safetensors")
        save_tensors(path, learning.model.state_dict(), note)

    def _received(self) -> Received:
        received = Collection(self.session).gather()
        self._keep_pictures(received)
        return received

    def _keep_pictures(self, received: Received) -> None:
        """Put into a file what the cloud sees, and what it makes of it without a key."""
        span = self.session.span
        first = received.images[:SHOWN].astype(np.float64)
        seen = {"received": torch.from_numpy((first - span.low) / (span.high - span.low)).float()}
        if self.settings.shield and is_affine(parse_notation(self.settings.shield)):
            # Of one owner, whose images are under one key.
            count = next(iter(self.session.begun_with.values()))
            own = received.images[: min(SEEN, count)].astype(np.int64)
            m = recover_factors(own)
            shown = invert_affine(own[:SHOWN], m, guess_offsets(own, m, "mid-range"))
            seen["undone"] = torch.from_numpy(shown)
        save_tensors(self.recorder.artefact(f"{self.session.case}/seen.safetensors"), seen, {})
