"""One case of an experiment as the cloud sees it, whatever the system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.assignments import Assignment
from pudica.clients.shields.disguises import Span
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.randomness import derive
from pudica.strategies.core.cases import CasesConfig
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.joining import (
    Words,
    agree_on_images,
    base_assignments,
    gather,
    introduce,
)
from pudica.strategies.core.members import Member, Shape
from pudica.strategies.core.recorder import Recorder

CLOUD = "cloud"
# On these engines a node's process lives as long as the run; elsewhere each message may reach
# a fresh one, and what a node has to remember must be in its vault, or come with the message.
LASTING = ("inprocess", "ray", "benchmark")

E = TypeVar("E", bound=Experiment)
S = TypeVar("S", bound=CasesConfig)


def run_cases(
    cohort: Cohort,
    experiment: Experiment,
    minimum: int,
    cases: Mapping[str, S],
    run_case: Callable[[str, S], None],
) -> None:
    """Wait for the nodes, and run each case that was not finished before a kill.

    Parameters
    ----------
    minimum : int
        Nodes without which there is nothing to run.
    run_case : callable
        Runs one, given its name and settings; all nodes are there again.
    """
    recorder = cohort.run_recorder
    with recorder.timed("join"):
        nodes = gather(cohort, experiment.names(), minimum)
    for case, settings in cases.items():
        if not recorder.is_finished(f"case/{case}"):
            cohort.nodes = dict(nodes)
            run_case(case, settings)
            recorder.finish(f"case/{case}")


class CaseSession(Generic[E, S]):
    """The nodes of one case: who they are, what is sent to them, and what is noted of it.

    Parameters
    ----------
    cohort : Cohort
    experiment : Experiment
    case : str
    settings : CasesConfig
        Of this case.
    minimum : int
        With fewer replies the run stops, to be resumed.

    Attributes
    ----------
    members : dict of str to Member
        Who joined.
    image, classes, span : tuple of int, int, Span
        Shape of an image, number of classes, where values lie; of all members.
    fresh : bool
        Whether each message may reach a new process of its node.
    """

    def __init__(
        self, cohort: Cohort, experiment: E, case: str, settings: S, minimum: int = 1
    ) -> None:
        self.cohort = cohort
        self.experiment = experiment
        self.case = case
        self.settings = settings
        self.minimum = minimum
        self.recorder: Recorder = cohort.run_recorder
        self.seed = derive(experiment.seed, experiment.system, case)
        self.compute = Compute(experiment.client)
        self.fresh = self.recorder.run["engine"] not in LASTING
        self.members: dict[str, Member] = {}
        self.image: Shape = (0, 0, 0)
        self.classes = 0
        self.span = Span()

    # ------------------------------------------------------------------------ joining

    def introduce(
        self, assignments: Mapping[str, Assignment], turns: Mapping[str, int] | None = None
    ) -> None:
        """Give every node its assignment, and ask what data it has.

        Parameters
        ----------
        turns : mapping of str to int, optional
            To which turn a node of a resumed run goes back; -1: it begins.

        Raises
        ------
        TooFewParticipants
            Too few nodes have data that fit each other.
        RequestError
            All come back with other keys than the run was begun with.
        """
        self.cohort.reset_failures()
        self.cohort.dropouts.clear()
        joined = introduce(self.cohort, assignments, self.read_member, turns)
        self.require_min_replies(len(joined))
        self.agree(joined)
        self.require_min_replies(len(joined))
        self._check_keys(joined)
        self.require_min_replies(len(joined))
        self.members = joined

    def read_member(self, words: Words) -> Member:
        """Return what a node says of its data; KeyError or ValueError if it makes no sense."""
        return Member.read(words)

    def agree(self, joined: dict[str, Member]) -> None:
        """Leave out who has no training images, or others than most."""
        for name in [name for name, member in joined.items() if not member.train]:
            self.cohort.leave_out(name, "has no training images; it is left out")
            del joined[name]
        self.require_min_replies(len(joined))
        self.image, self.classes, self.span = agree_on_images(self.cohort, joined)

    def _check_keys(self, joined: dict[str, Member]) -> None:
        """Note the nodes' keys; leave out who comes back with another, unless all do."""
        others: dict[str, RequestError] = {}
        for name, member in joined.items():
            try:
                self.recorder.check_key(self.key_name(name), member.key)
            except RequestError as error:
                others[name] = error
        if others and len(others) == len(joined):
            raise next(iter(others.values()))
        for name, problem in others.items():
            self.cohort.leave_out(name, str(problem))
            del joined[name]

    def key_name(self, node: str) -> str:
        """Return the name that a node's key is noted under."""
        return node

    def base_assignments(self) -> dict[str, dict[str, Any]]:
        """Return by name what the assignment of each node says, whatever the system."""
        return base_assignments(self.experiment, self.run, self.cohort.registry is not None)

    def require_min_replies(self, replied: int) -> None:
        """Raise TooFewParticipants if fewer nodes replied than the experiment needs."""
        what = f"{self.experiment.system} ({self.case})"
        self.cohort.require_min_replies(self.minimum, replied, what)

    @property
    def disguised_before(self) -> bool:
        """Whether members hold images that are disguised already."""
        return any(member.key for member in self.members.values())

    # ----------------------------------------------------------------------- messages

    @property
    def run(self) -> str:
        """The run's name, by which nodes know it."""
        return self.recorder.name

    def request(self, config: Mapping[str, protocol.Scalar], **arrays: Array) -> RecordDict:
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
