"""One case of split learning as the cloud sees it: who joins, on what."""

from __future__ import annotations

from collections.abc import Callable

from pudica.clients.assignments import Budget, EdgeAssignment
from pudica.models.compute import Compute
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.joining import agree_on_images, introduce
from pudica.strategies.core.members import Member
from pudica.strategies.core.session import CaseSession
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.model import calibrate_shield
from pudica.strategies.split.reporting import reports


class Session(CaseSession):
    """The devices of one case.

    Parameters
    ----------
    cohort : Cohort
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
        self.shield = calibrate_shield(settings)
        self.image: tuple[int, int, int] = (0, 0, 0)
        self.classes = 0

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
        self._require(len(joined))
        self.image, self.classes, _ = agree_on_images(self.cohort, joined)
        self._require(len(joined))
        self.met(joined)
        for name, member in joined.items():
            self._meet(name, member)
        nodes = self.cohort.nodes
        self.cohort.nodes = {name: nodes[name] for name in self.devices}
        self._require(len(self.devices))

    def _meet(self, name: str, member: Member) -> None:
        if not member.train:
            self.cohort.reject(name, "has no training data; it is left out")
            return
        self.devices[name] = member

    def _require(self, answered: int) -> None:
        """Raise TooFewParticipants if fewer devices joined than the experiment needs."""
        self.cohort.require_min_replies(self.settings.min_devices, answered, f"split ({self.case})")

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
