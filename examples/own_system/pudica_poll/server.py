"""What the server does: it asks, and takes the lies out of the sum."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pudica.clients import protocol
from pudica.clients.data import PartitionConfig, Splits
from pudica.models.randomness import derive
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.joining import base_assignments, gather, introduce
from pudica_poll.client import ANSWER, PollAssignment


class PollConfig(BaseModel):
    """Whom to ask what, and how often they lie.

    Attributes
    ----------
    nodes : int, in nodes
        How many nodes are asked.
    label : int
        The number of the class that images are counted of.
    epsilon : float, in ε of one image
        The privacy of an answer: the smaller, the more lies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(default=3, ge=1)
    label: int = Field(default=0, ge=0)
    epsilon: float = Field(default=1.0, gt=0)


class PollExperiment(Experiment):
    """A poll."""

    system: Literal["poll"] = "poll"
    poll: PollConfig = PollConfig()

    def names(self) -> list[str]:
        """Return the nodes' names."""
        return [f"node-{number}" for number in range(self.poll.nodes)]

    def partition(self) -> PartitionConfig:
        """Return how images are divided: evenly, if nothing else is said."""
        return self.data.partition or PartitionConfig()

    def check_models(self, data: Splits) -> None:
        """There is none."""

    def deployed(self, nodes: list[str]) -> list[str]:
        """Return what is set otherwise where nodes are real."""
        return [f"poll.nodes={len(nodes)}"]


def run(cohort: Cohort, experiment: PollExperiment) -> None:
    """Join, ask, estimate."""
    recorder, settings = cohort.run_recorder, experiment.poll
    cohort.nodes = gather(cohort, experiment.names(), 1)
    told = base_assignments(experiment, recorder.name, cohort.registry is not None)
    seed = derive(experiment.seed, "poll")
    assignments = {name: PollAssignment(**own, seed=seed) for name, own in told.items()}
    sizes = introduce(cohort, assignments, lambda words: int(words["train"]))
    request = protocol.request(
        {"run": recorder.name, "case": "main", "label": settings.label, "epsilon": settings.epsilon}
    )
    requests = dict.fromkeys(cohort.nodes, request)
    answers = cohort.send_and_receive(
        ANSWER, requests, lambda name, c: protocol.count_of(c, "yes", sizes[name])
    )
    lie = 1 / (1 + math.exp(settings.epsilon))
    for name, yes in answers.items():
        share = (yes / sizes[name] - lie) / (1 - 2 * lie)
        recorder.log("poll", "share", share, node=name, case="main")
