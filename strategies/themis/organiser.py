"""The organiser's state in a competition: participants, test set, secret, models by name."""

from __future__ import annotations

import secrets

from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.assignments import OWN, ParticipantConfig
from pudica.clients.shields.disguises import Span
from pudica.models.compute import Compute
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive, torch_generator
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import Member
from pudica.strategies.themis.config import StagesConfig, ThemisConfig
from pudica.strategies.themis.experiment import ThemisExperiment
from pudica.strategies.themis.release import Contestants
from pudica.strategies.themis.strategy import Themis

# The case of measurements that are the same in all cases.
SHARED = ""


class Organiser:
    """The organiser's state during a competition."""

    def __init__(self, cohort: Cohort, experiment: ThemisExperiment) -> None:
        self.cohort = cohort
        self.experiment = experiment
        self.settings = experiment.themis
        self.recorder = cohort.run_recorder
        self.run = self.recorder.name
        self.compute = Compute(experiment.client)
        self.data = experiment.load_data()
        experiment.check_models(self.data)
        self.add_newcomers()
        # Seeds the test set's noise. In the checkpoint, so that a resumed run still has it.
        note = self.recorder.note
        if "secret" not in note:
            drawn = self.settings.release.secret
            note["secret"] = (
                secrets.randbits(256) if drawn else derive(experiment.seed, "test-noise")
            )
        self.secret = int(note["secret"])

    def add_newcomers(self) -> None:
        """Add participants that were registered after a competition in stages had started."""
        if self.settings.stages == StagesConfig() or self.experiment.data.partition:
            return
        started, known = self.recorder.note["started"], self.experiment.names()
        newcomers = [
            ParticipantConfig(model=OWN, name=entry.name)
            for entry in self.cohort.registered
            if entry.since >= started and entry.name not in known
        ]
        everyone = [*self.experiment.participants, *newcomers]
        self.experiment = self.experiment.model_copy(update={"participants": everyone})
        self.recorder.run["nodes"] = self.experiment.names()

    def request(self, variant: str, **config: protocol.Scalar) -> RecordDict:
        """Return a request without arrays, to models of this variant."""
        return protocol.request({"run": self.run, "variant": variant, **config})

    def contestants(self) -> Contestants:
        """Return every model that is trained for any case."""
        # Whoever has submitted something competes, even if absent after a resume.
        submitted = {entry["participant"] for entry in self.recorder.note.get("submissions", [])}
        competing = submitted | set(self.cohort.nodes)
        names = [name for name in self.experiment.names() if name in competing]
        cheaters = {n for case in self.settings.each_case().values() for n in case.cheaters}
        honest = {name: (name, "honest") for name in names}
        cheating = {f"{n} (cheating)": (n, "cheating") for n in names if n in cheaters}
        return honest | cheating

    def contestants_of(self, case: str) -> Contestants:
        """Return the models that compete in one case: of cheaters the cheating ones."""
        cheaters = self.settings.each_case()[case].cheaters
        return {
            name: (node, variant)
            for name, (node, variant) in self.contestants().items()
            if (variant == "cheating") == (node in cheaters)
        }

    def strategy(self, case: str, settings: ThemisConfig) -> Themis:
        """Return the strategy that trains the noise generator of one case."""
        data = self.data
        member = Member(
            data.shape,
            data.num_classes,
            data.key,
            Span(),
            train=len(data.train),
            validation=len(data.validation),
            test=len(data.test),
            reports=True,
        )
        strategy = Themis.of_experiment(settings, self.experiment.seed)
        strategy.attach(self.cohort, dict.fromkeys(self.experiment.names(), member), case)
        return strategy

    def untrained(self, bound: float) -> NoiseGenerator:
        """Return the untrained generator, the same in all cases."""
        randomness = torch_generator(self.experiment.seed, "generator")
        return NoiseGenerator.untrained(self.data.shape, bound, randomness)
