"""One case of an experiment as the cloud sees it, whatever the system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.joining import base_assignments
from pudica.strategies.core.members import Member
from pudica.strategies.core.recorder import Recorder

CLOUD = "cloud"
# On these engines a node's process lives as long as the run; elsewhere each message may reach
# a fresh one, and what a node has to remember must be in its vault, or come with the message.
LASTING = ("inprocess", "ray", "benchmark")

Words = Mapping[str, protocol.Scalar]


class CaseSession:
    """The nodes of one case: what is sent to them, and what is noted of it.

    Parameters
    ----------
    cohort : Cohort
    case : str

    Attributes
    ----------
    fresh : bool
        Whether each message may reach a new process of its node.
    """

    def __init__(self, cohort: Cohort, case: str) -> None:
        self.cohort = cohort
        self.recorder: Recorder = cohort.run_recorder
        self.case = case
        self.fresh = self.recorder.run["engine"] not in LASTING

    def met(self, joined: dict[str, Member], suffix: str = "") -> None:
        """Note the nodes' keys; leave out who comes back with another.

        Parameters
        ----------
        suffix : str
            Of the names that keys are noted under.

        Raises
        ------
        RequestError
            All do.
        """
        others: dict[str, RequestError] = {}
        for name, member in joined.items():
            try:
                self.recorder.check_key(f"{name}{suffix}", member.key)
            except RequestError as error:
                others[name] = error
        if others and len(others) == len(joined):
            raise next(iter(others.values()))
        for name, problem in others.items():
            self.cohort.leave_out(name, str(problem))
            del joined[name]

    def base_assignments(self, experiment: Experiment) -> dict[str, dict[str, Any]]:
        """Return by name what the assignment of each node says, whatever the system."""
        return base_assignments(experiment, self.run, self.cohort.registry is not None)

    @property
    def run(self) -> str:
        """The run's name, by which nodes know it."""
        return self.recorder.name

    def request(self, config: Words, **arrays: Array) -> RecordDict:
        """Return a request of this case."""
        return protocol.request({"run": self.run, "case": self.case, **config}, **arrays)

    def task(self, stage: str) -> str:
        """Return the name under which the recorder knows a stage of this case."""
        return f"{stage}/{self.case}"

    def log(
        self,
        stage: str,
        metric: str,
        value: float,
        node: str = CLOUD,
        round: int = 0,  # noqa: A002
        **tags: str | int,
    ) -> None:
        """Append a measurement of this case."""
        self.recorder.log(stage, metric, value, node=node, round=round, case=self.case, **tags)
