"""An experiment with a competition."""

from __future__ import annotations

import json
from typing import Literal, Self

from pydantic import model_validator

from pudica import models
from pudica.clients.assignments import OWN, ParticipantConfig
from pudica.clients.data import Splits
from pudica.models.custom import PREFIX, SUFFIX
from pudica.models.errors import RequestError
from pudica.models.files import load_weights_into
from pudica.models.training import TrainingConfig
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.themis.config import ThemisConfig

REHEARSAL = (
    "a rehearsal: the test set is no split of its own (data.split: own), so participants hold its "
    "images and labels too"
)


class ThemisExperiment(Experiment):
    """A competition: its participants, how they train, and what the organiser decides.

    Attributes
    ----------
    participants : list of ParticipantConfig
        The participants, partition 0 first; in a deployment by default those who are registered.
    training : TrainingConfig
        How participants train their models, if they do not say otherwise.
    """

    system: Literal["themis"] = "themis"
    participants: list[ParticipantConfig] = []
    training: TrainingConfig = TrainingConfig()
    themis: ThemisConfig = ThemisConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"participants: the name '{twice[0]}' is there twice; give each its own `name`"
            )
        if names:  # else they are those who are registered
            self.themis.check(names)
        return self

    def deployed(self, nodes: list[str]) -> list[str]:
        """Return settings for real participants.

        One that the experiment does not name brings a model of its own. Each epoch of the noise
        generator is one visit; the test set leaves in no other way than behind secret noise.
        """
        known = {
            p.name: p.model_dump(mode="json", exclude_none=True)
            for p in self.participants
            if not p.weights and not p.model.startswith(PREFIX) and not p.model.endswith(SUFFIX)
        }
        playing = [known.get(name, {"model": OWN, "name": name}) for name in nodes]
        return [
            f"participants={json.dumps(playing)}",
            "themis.update=averaged",
            "themis.steps_per_visit=100000",
            "themis.epochs_per_message=1000",
            f"themis.validate_every={max(1, self.themis.epochs)}",
            "themis.release.images_per_message=100000",
            "themis.release.compare=false",
            "themis.release.secret=true",
            "themis.release.draws=1",
        ]

    def remarks(self, data: Splits) -> list[str]:
        """Return that it is a rehearsal, if it is one."""
        return [] if data.has_own_test else [REHEARSAL]

    def names(self) -> list[str]:
        """Return the participants' names, in order."""
        return [participant.name for participant in self.participants]

    def check_models(self, data: Splits) -> None:
        """Build every participant's model, and the examiner; see :class:`Experiment`."""
        if not self.participants:
            raise RequestError(
                "participants: there are none; name their models, for example [{model: mlp}, "
                "{model: softmax}] (real ones are those who are registered: `pudica deploy run`)"
            )
        if not len(data.validation):
            raise RequestError(
                f"data.split: '{self.data.split}' leaves no validation images, which a competition "
                "needs; allowed: own, 4:1:1"
            )
        if self.themis.stages.test.closes and (
            self.themis.release.images_per_message < len(data.test)
        ):
            raise RequestError(
                f"themis.release.images_per_message: a test that closes is released at once; must "
                f"be at least {len(data.test)}"
            )
        examiner = self.themis.examiner
        wanted = [
            (f"participants.{number} ({p.name})", p.model, p.weights)
            for number, p in enumerate(self.participants)
        ]
        wanted += [("themis.examiner", examiner.model, None)] if examiner else []
        for where, model, weights in wanted:
            if model == OWN:
                continue
            try:
                built = models.build_for(model, data.shape, num_classes=data.num_classes)
                if weights:
                    load_weights_into(built, weights)
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from error
