"""What the organiser of a competition knows: participants, test set, secret, models by name."""

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

# What does not differ between the cases is measured once, under no case's name.
SHARED = ""


class Organiser:
    """The organiser's state during a competition.

    Parameters
    ----------
    cohort : Cohort
    experiment : ThemisExperiment
    """

    def __init__(self, cohort: Cohort, experiment: ThemisExperiment) -> None:
        recorder = cohort.run_recorder
        self.cohort = cohort
        self.experiment = experiment
        self.settings = experiment.themis
        self.recorder = recorder
        self.run = recorder.name
        self.compute = Compute(experiment.client)
        self.data = experiment.load_data()
        experiment.check_models(self.data)
        self.refused: dict[int, tuple[float, float]] = {}
        self.meet_newcomers()
        self.secret = self._secret()

    def _secret(self) -> int:
        """Return the seed of the test set's noise, kept in the organiser's checkpoint."""
        note = self.recorder.note
        if "secret" not in note:
            drawn = self.settings.release.secret
            note["secret"] = (
                secrets.randbits(256) if drawn else derive(self.experiment.seed, "test-noise")
            )
        return int(note["secret"])

    def meet_newcomers(self) -> None:
        """Let those compete, too, who were registered after a competition in stages had begun."""
        if self.settings.stages == StagesConfig() or self.experiment.data.partition:
            return
        begun, playing = self.recorder.note["started"], self.experiment.names()
        fresh = [
            entry.name
            for entry in self.cohort.registered
            if entry.since >= begun and entry.name not in playing
        ]
        everyone = [
            *self.experiment.participants,
            *(ParticipantConfig(model=OWN, name=name) for name in fresh),
        ]
        self.experiment = self.experiment.model_copy(update={"participants": everyone})
        self.recorder.run["nodes"] = self.experiment.names()

    def request(self, variant: str, **config: protocol.Scalar) -> RecordDict:
        """Return a request without arrays to participants with a model of this variant."""
        return protocol.request({"run": self.run, "variant": variant, **config})

    def contestants(self) -> Contestants:
        """Return every model that is trained for any case."""
        # Who has submitted something counts, even where it is not there after a resume.
        submitted = {entry["participant"] for entry in self.recorder.note.get("submissions", [])}
        playing = submitted | set(self.cohort.nodes)
        names = [name for name in self.experiment.names() if name in playing]
        cheaters = {n for case in self.settings.each_case().values() for n in case.cheaters}
        honest = {name: (name, "honest") for name in names}
        cheating = {f"{n} (cheating)": (n, "cheating") for n in names if n in cheaters}
        return honest | cheating

    def contestants_of(self, case: str) -> Contestants:
        """Return the models that compete in one case: a cheater's cheating one."""
        cheaters = self.settings.each_case()[case].cheaters
        return {
            name: (node, variant)
            for name, (node, variant) in self.contestants().items()
            if (variant == "cheating") == (node in cheaters)
        }

    def strategy(self, case: str, settings: ThemisConfig) -> Themis:
        """Return what trains the noise generator of one case."""
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
        """Return the generator before its training, the same in all cases."""
        randomness = torch_generator(self.experiment.seed, "generator")
        return NoiseGenerator.untrained(self.data.shape, bound, randomness)
