"""One case of FaceMix as the cloud sees it: the edges, the settings, the messages."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from flwr.app import Array

from pudica.clients import protocol
from pudica.clients.assignments import InferenceAssignment
from pudica.clients.data import Splits
from pudica.clients.shields.decoys import count_missing
from pudica.clients.shields.mixing import group_size
from pudica.clients.shields.stages import StagedModel
from pudica.models.compute import Compute
from pudica.models.packing import model_arrays
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import introduce
from pudica.strategies.core.members import Member
from pudica.strategies.core.session import CaseSession
from pudica.strategies.facemix.config import FacemixConfig
from pudica.strategies.facemix.experiment import FacemixExperiment


class Session(CaseSession):
    """The edges of one case, and the model.

    Parameters
    ----------
    exchanges : Exchanges
    experiment : FacemixExperiment
    case : str
    settings : FacemixConfig
        Of this case.
    data : Splits
        The cloud's own images; of ``split`` training only what the model is built for.

    Attributes
    ----------
    model : Staged
        All three stages.
    edges : dict of str to Member
        Who joined.
    """

    def __init__(
        self,
        cohort: Cohort,
        experiment: FacemixExperiment,
        case: str,
        settings: FacemixConfig,
        data: Splits,
    ) -> None:
        super().__init__(cohort, case)
        self.experiment = experiment
        self.settings = settings
        self.data = data
        self.seed = derive(experiment.seed, "facemix", case)
        self.compute = Compute(experiment.client)
        self.model: StagedModel = self.compute.move_model(experiment.built(settings, data))  # type: ignore[assignment]
        self.edges: dict[str, Member] = {}

    def join(self) -> None:
        """Give every edge its part, and ask what images it has.

        Raises
        ------
        RuntimeError
            Too few edges with images that the model is for.
        """
        self.cohort.reset_failures()
        self.cohort.dropouts.clear()
        joined = introduce(self.cohort, self._assignments(), self._introduced)
        self.require_min_replies(len(joined))
        self.met(joined)
        group = group_size(self.settings.around)
        for name, member in joined.items():
            if member.test < group:
                few = f"{member.test} images, fewer than a group of {group}"
                self.recorder.event(f"{name} asks about {few}: its mixtures hide less")
        self.edges = joined

    def _introduced(self, words: dict[str, protocol.Scalar]) -> Member:
        self._check_attributes(protocol.text(words, "attributes"))
        member = Member.read(words)
        if member.shape != self.data.shape:
            sizes = ["x".join(map(str, shape)) for shape in (member.shape, self.data.shape)]
            raise ValueError(f"holds images of {sizes[0]}, the model is for {sizes[1]}")
        self._check_groups(member)
        return member

    def _check_attributes(self, told: str) -> None:
        """See that an edge has the model's attributes: logits have no names, only places.

        Parameters
        ----------
        told : str
            Their names, a line each.
        """
        ours = self.data.attributes
        if told == "\n".join(ours):
            return
        theirs = told.split("\n", len(ours))
        for place, (name, own) in enumerate(zip_longest(theirs, ours, fillvalue="none"), 1):
            if name != own:
                raise ValueError(f"its attribute {place} is {name[:99]}, the model's is {own}")

    def _check_groups(self, member: Member) -> None:
        """See that what an edge sends are whole groups, where nothing is to fill them."""
        settings = self.settings
        sizes = {member.test % settings.request}
        if settings.train == "split":
            sizes |= set(protocol.batch_sizes(member.train, settings.training.batch_size))
        for count in sorted(sizes):
            count_missing(count, settings.around)

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
            for name, own in self.base_assignments(self.experiment).items()
        }

    def ends(self) -> dict[str, Array]:
        """Return what edges need of the model: the first and the last stage, and what normalises.

        ``normalisation`` is (2, C): mean and deviation of the cloud's images; left out in split
        training, where each edge normalises as its data say.
        """
        arrays = {
            name: Array(values) for name, values in model_arrays(self.model.edge_stages).items()
        }
        if self.settings.train == "central":
            images = self.data.train
            both = torch.stack([images.mean, images.std]).flatten(1)
            arrays["normalisation"] = Array(both.numpy().astype(np.float32))
        return arrays

    def require_min_replies(self, answered: int) -> None:
        """Raise TooFewParticipants if fewer edges answered than the experiment needs."""
        self.cohort.require_min_replies(self.settings.min_edges, answered, f"facemix ({self.case})")
