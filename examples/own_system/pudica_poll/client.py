"""What a node does: it answers each question for each image with a coin in its hand."""

import math
from typing import Literal

import numpy as np
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.assignments import Assignment
from pudica.clients.data import load_once
from pudica.clients.runtime.role import Arrays, Config, Role
from pudica.clients.runtime.vault import Vault
from pudica.models.compute import Compute
from pudica.models.randomness import numpy_generator

ANSWER = "query.answer"


class PollAssignment(Assignment):
    """What a node is told when it joins."""

    system: Literal["poll"] = "poll"
    seed: int
    case: str = "main"


class Respondent(Role):
    """A node with images of its own."""

    def __init__(self, vault: Vault, assignment: PollAssignment) -> None:
        self.vault, self.assignment = vault, assignment
        self.compute = Compute(assignment.compute)

    @property
    def data(self):
        """All images; the share of this node is its own."""
        return load_once(self.assignment.data.model_dump_json(), self.assignment.data_seed)

    def describe_data(self) -> dict[str, int | str]:
        """Return what the server learns when this node joins."""
        return {"train": len(self.assignment.share(self.data, "train"))}

    def answer(self, label: int, epsilon: float) -> int:
        """Return how many images say yes, each lying with probability 1 / (1 + e^ε)."""
        labels = self.assignment.share(self.data, "train").labels
        draws = numpy_generator(self.assignment.seed, "coin", self.assignment.partition)
        lies = draws.random(len(labels)) < 1 / (1 + math.exp(epsilon))
        return int(np.logical_xor(labels == label, lies).sum())


def answer(node: Respondent, config: Config, _: Arrays) -> RecordDict:
    """Answer a question."""
    return protocol.reply({"yes": node.answer(config["label"], config["epsilon"])})


Respondent.handlers = {ANSWER: answer}
ROLES = (Respondent,)
