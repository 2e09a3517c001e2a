"""One case of split learning as the cloud sees it: who joins, on what."""

from __future__ import annotations

from collections.abc import Callable

from pudica.clients.assignments import Budget, EdgeAssignment
from pudica.models.compute import Compute
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.session import CaseSession
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.model import calibrate_shield
from pudica.strategies.split.reporting import reports


class Session(CaseSession[SplitExperiment, SplitConfig]):
    """The devices of one case.

    Attributes
    ----------
    shield : ShieldConfig
        With the noise that a budget asks for.
    """

    def __init__(
        self, cohort: Cohort, experiment: SplitExperiment, case: str, settings: SplitConfig
    ) -> None:
        super().__init__(cohort, experiment, case, settings, settings.min_devices)
        threads = settings.threads or experiment.client.threads
        self.compute = Compute(experiment.client.model_copy(update={"threads": threads}))
        self.shield = calibrate_shield(settings)
        # Machines of a cluster may go away, and their devices' processes with them.
        self.fresh = self.fresh or experiment.ray.address is not None

    def join(self, turn: Callable[[str], int]) -> None:
        """Give every device its part, and ask what data it has.

        Parameters
        ----------
        turn : callable
            To which turn a device of a resumed run goes back; -1: it begins.
        """
        self.introduce(self._assignments(), {name: turn(name) for name in self.experiment.names()})

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
            for name, own in self.base_assignments().items()
        }

    def _allowed(self) -> int:
        budget = self.settings.budget
        return (budget and budget.releases) or self.settings.releases

    def _budget(self) -> Budget | None:
        budget = self.settings.budget
        return Budget(epsilon=budget.epsilon, delta=budget.delta) if budget else None
