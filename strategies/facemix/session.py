"""One case of FaceMix as the cloud sees it: the edges, the settings, the messages."""

from __future__ import annotations

from pudica import models
from pudica.clients import protocol
from pudica.clients.assignments import InferenceAssignment
from pudica.clients.data import Splits
from pudica.clients.shields.mixing import group_size
from pudica.clients.shields.stages import StagedModel
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import Words
from pudica.strategies.core.members import Member
from pudica.strategies.core.session import CaseSession
from pudica.strategies.facemix.anonymising import AnonymisedFaceMix
from pudica.strategies.facemix.config import FacemixConfig
from pudica.strategies.facemix.edges import check_attributes, check_groups
from pudica.strategies.facemix.experiment import FacemixExperiment
from pudica.strategies.facemix.strategy import FaceMix


class Session(CaseSession[FacemixExperiment, FacemixConfig]):
    """The edges of one case, and the model.

    Parameters
    ----------
    data : Splits
        The cloud's own images; of ``split`` training only what the model is built for.

    Attributes
    ----------
    strategy : FaceMix
        What trains and serves this case; it has nodes once they have joined.
    """

    def __init__(
        self,
        cohort: Cohort,
        experiment: FacemixExperiment,
        case: str,
        settings: FacemixConfig,
        data: Splits,
    ) -> None:
        super().__init__(cohort, experiment, case, settings, settings.min_edges)
        self.data = data
        self.strategy = self._make_strategy()

    def _make_strategy(self) -> FaceMix:
        settings, data = self.settings, self.data
        kind = AnonymisedFaceMix if settings.anonymiser else FaceMix
        strategy = kind.of_experiment(
            settings,
            self.experiment.built(settings, data),
            seed=self.seed,
            attributes=data.attributes,
            compute=self.compute,
            images=(data.train, data.validation),
        )
        if isinstance(strategy, AnonymisedFaceMix):
            strategy.adversary = models.build_for(
                settings.model,
                data.shape,
                num_classes=data.num_classes,
                seed=derive(self.experiment.seed, "adversary"),
            )
        return strategy

    @property
    def model(self) -> StagedModel:
        """All three stages."""
        return self.strategy.model

    def join(self) -> None:
        """Give every edge its part, and ask what images it has.

        Raises
        ------
        TooFewParticipants
            Too few edges with images that the model is for.
        """
        self.introduce(self._assignments())
        group = group_size(self.settings.around)
        for name, member in self.members.items():
            if member.test < group:
                few = f"{member.test} images, fewer than a group of {group}"
                self.recorder.event(f"{name} asks about {few}: its mixtures hide less")
        self.strategy.attach(self.cohort, self.members, self.case)
        self.strategy.fresh = self.fresh

    def read_member(self, words: Words) -> Member:
        """Return what an edge says of its images, if they are what the model is for."""
        check_attributes(protocol.text(words, "attributes"), self.data.attributes)
        member = super().read_member(words)
        if member.shape != self.data.shape:
            sizes = ["x".join(map(str, shape)) for shape in (member.shape, self.data.shape)]
            raise ValueError(f"holds images of {sizes[0]}, the model is for {sizes[1]}")
        check_groups(member, self.settings)
        return member

    def agree(self, joined: dict[str, Member]) -> None:
        """Leave out nobody more: each fits the model already."""

    def _assignments(self) -> dict[str, InferenceAssignment]:
        settings = self.settings
        return {
            name: InferenceAssignment(
                **own,
                case=self.case,
                model=settings.model,
                stages=settings.stages,
                shield=settings.around,
                keys=settings.keys,
                train=settings.train,
                seed=self.seed,
                batch_size=settings.training.batch_size,
                request=settings.request,
                augment=settings.training.augment,
                class_weights=settings.training.class_weights,
                wire=settings.wire,
                report=settings.report,
            )
            for name, own in self.base_assignments().items()
        }
