"""One case of split learning as the cloud sees it: the devices, the settings, the messages."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from flwr.app import Array

from pudica.clients import protocol
from pudica.clients.assignments import Budget, EdgeAssignment
from pudica.clients.protocol import batch_sizes
from pudica.models.compute import Compute
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import agree_on_images, introduce
from pudica.strategies.core.members import Member
from pudica.strategies.core.session import CaseSession
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.costs import Costs
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.model import guarded
from pudica.strategies.split.reporting import reports

# Of float16, half of what it can hold: gradients are scaled up to it.
ROOM = 2.0**14


class Session(CaseSession):
    """The devices of one case.

    Parameters
    ----------
    exchanges : Exchanges
    experiment : SplitExperiment
    case : str
    settings : SplitConfig
        Of this case.

    Attributes
    ----------
    devices : dict of str to Member
        Who joined.
    shield : ShieldConfig
        With the noise that a budget asks for.
    needed : int
        The turn of the last checkpoint, to which a killed run goes back.
    image, classes : tuple of int, int
        Shape of an image, number of classes; of all devices.
    """

    def __init__(
        self, cohort: Cohort, experiment: SplitExperiment, case: str, settings: SplitConfig
    ) -> None:
        super().__init__(cohort, case)
        self.experiment = experiment
        self.settings = settings
        self.seed = derive(experiment.seed, "split", case)
        threads = settings.threads or experiment.client.threads
        self.compute = Compute(experiment.client.model_copy(update={"threads": threads}))
        self.devices: dict[str, Member] = {}
        self.shield = guarded(settings)
        self.costs = Costs(cohort)
        self.needed = -1
        self.image: tuple[int, int, int] = (0, 0, 0)
        self.classes = 0

    # ------------------------------------------------------------------------ joining

    def join(self, turn: Callable[[str], int]) -> None:
        """Give every device its part, and ask what data it has.

        Parameters
        ----------
        turn : callable
            To which turn a device of a resumed run goes back; -1: it begins.

        Raises
        ------
        RuntimeError
            Devices with data of different shapes or classes; too few with data at all.
        """
        self.cohort.reset_failures()
        turns = {name: turn(name) for name in self.experiment.names()}
        joined = introduce(self.cohort, self._assignments(), Member.read, turns)
        self.require_min_replies(len(joined))
        self.image, self.classes, _ = agree_on_images(self.cohort, joined)
        self.require_min_replies(len(joined))
        self.met(joined)
        for name, member in joined.items():
            self._meet(name, member)
        nodes = self.cohort.nodes
        self.cohort.nodes = {name: nodes[name] for name in self.devices}
        self.require_min_replies(len(self.devices))

    def _meet(self, name: str, member: Member) -> None:
        if not member.train:
            self.cohort.reject(name, "has no training data; it is left out")
            return
        self.devices[name] = member

    def _assignments(self) -> dict[str, EdgeAssignment]:
        settings = self.settings
        return {
            name: EdgeAssignment(
                **own,
                case=self.case,
                model=settings.model,
                cut=settings.cut,
                fronts=settings.front,
                shield=self.shield,
                noise=settings.noise,
                seed=self.seed,
                batch_size=settings.batch_size,
                wire=settings.wire,
                optimizer=settings.front_optimizer or settings.optimizer,
                releases=self._allowed(),
                test_features=bool(settings.test_releases),
                reports=reports(settings, self.shield),
                budget=self._budget(),
                plain_to_cloud=settings.plain_to_cloud,
            )
            for name, own in self.base_assignments(self.experiment).items()
        }

    def _allowed(self) -> int:
        budget = self.settings.budget
        return (budget and budget.releases) or self.settings.releases

    def _budget(self) -> Budget | None:
        budget = self.settings.budget
        return Budget(epsilon=budget.epsilon, delta=budget.delta) if budget else None

    # ----------------------------------------------------------------------- messages

    def gradient(
        self, gradient: torch.Tensor, turn: int
    ) -> tuple[dict[str, protocol.Scalar], dict[str, Array]]:
        """Return config and array of a gradient at the cut, of what was sent in a turn.

        For float16 it is scaled by a power of two, since most of it would be too small.
        """
        scale, wire = 1.0, self.settings.wire
        if wire == "float16" and (largest := float(gradient.abs().max())) > 0:
            scale = 2.0 ** math.floor(math.log2(ROOM / largest))
            gradient = gradient * scale
        values = protocol.on_wire(gradient, wire)
        return {"scale": scale, "of": turn}, {"gradient": Array(values)}

    def reporting(self) -> list[str]:
        """Return who is there and says how often models are right."""
        return [name for name in self.cohort.nodes if self.devices[name].reports]

    def sizes(self, name: str, step: int, count: int) -> list[int]:
        """Return the sizes of a device's batches, of those that it has."""
        every = batch_sizes(self.devices[name].train, self.settings.batch_size)
        return every[step : step + count]

    def batches(self, name: str) -> int:
        """Return how many batches of a device make an epoch."""
        return len(batch_sizes(self.devices[name].train, self.settings.batch_size))

    def require_min_replies(self, answered: int) -> None:
        """Raise TooFewParticipants if fewer devices answered than the experiment needs."""
        self.cohort.require_min_replies(self.settings.min_devices, answered, f"split ({self.case})")
