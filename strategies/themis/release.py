"""Released images, and how many of them each participant's model gets right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.clients.data.examples import Examples
from pudica.clients.themis.submissions import digest
from pudica.models.generator import NoiseGenerator
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.themis.protection import Seed, noisy_chunks
from pudica.strategies.themis.submissions import Submission, Submissions

VARIANTS = ("honest", "cheating")

# Node and variant of each trained model, by the name it has on a leaderboard.
Contestants = dict[str, tuple[str, str]]


def select_variant(contestants: Contestants, variant: str) -> dict[str, str]:
    """Return the leaderboard names of one variant's contestants, by node."""
    return {node: name for name, (node, v) in contestants.items() if v == variant}


class PredictBatch(NamedTuple):
    """Released images of one message; labels stay here, participants sign the digest."""

    images: Array
    labels: np.ndarray
    digest: str


class Release:
    """A test set that is released under noise, and the predictions for it.

    Parameters
    ----------
    min_nodes : int
        So many participants must reply.
    secret : int
        The source of the noise, known to the organiser only.
    submissions : Submissions
        Where a deployment keeps predictions.
    """

    def __init__(
        self,
        cohort: Cohort,
        test: ImageSet | Examples,
        classes: int,
        images_per_message: int,
        min_nodes: int,
        secret: int,
        submissions: Submissions,
    ) -> None:
        self.cohort = cohort
        self.test = test
        self.classes = classes
        self.images_per_message = images_per_message
        self.min_nodes = min_nodes
        self.secret = secret
        self.submissions = submissions

    def draw_seed(self, kind: str, case: str, bound: float, draw: int) -> Seed:
        """Return the seed of one draw of the noise."""
        return self.secret, kind, case, repr(bound), draw

    def measure_accuracy(
        self,
        contestants: Contestants,
        noise: NoiseGenerator | None,
        kind: str,
        case: str,
        draw: int,
    ) -> dict[str, float]:
        """Release the test images; return the share that each contestant classifies correctly.

        Parameters
        ----------
        noise : NoiseGenerator or None
            None releases the plain images.
        kind : {"plain", "untrained", "trained"}

        Raises
        ------
        TooFewParticipants
            Fewer than ``min_nodes`` replied.
        """
        bound = noise.bound if noise else 0.0
        seed = self.draw_seed(kind, case, bound, draw)
        tags: dict[str, str | float] = {"case": case, "release": kind, "M": bound, "draw": draw}
        correct, answered, first = dict.fromkeys(contestants, 0), set[str](), 0
        for _, released, labels in noisy_chunks(self.test, noise, seed, self.images_per_message):
            images = released.numpy()
            signed = digest(images) if self.submissions.registry else ""
            batch = PredictBatch(Array(images), labels.numpy(), signed)
            for variant in VARIANTS:
                names = select_variant(contestants, variant)
                key = {**tags, "first": first, "variant": variant}
                counts = self._count_correct(batch, list(names), key)
                for node, count in counts.items():
                    correct[names[node]] += count
                answered.update(counts)
            first += len(labels)
        self.cohort.require_min_replies(self.min_nodes, len(answered), protocol.PREDICT)
        return {name: count / len(self.test) for name, count in correct.items()}

    def _count_correct(
        self, batch: PredictBatch, nodes: list[str], key: dict[str, str | float]
    ) -> dict[str, int]:
        """Return how many images of a batch each node's model gets right.

        Nodes that answered before the run was stopped are not asked again.
        """
        known = self.submissions.find_counts(key)
        counts = {node: known[node] for node in nodes if node in known}

        def read(node: str, content: RecordDict) -> Submission:
            submission = Submission.read(content, len(batch.labels), self.classes)
            if problem := self.submissions.find_problem(node, batch.digest, submission):
                raise ValueError(problem)
            return submission

        config = {"run": self.cohort.recorder.name, "variant": key["variant"]}
        request = protocol.request(config, images=batch.images)
        left = [node for node in nodes if node not in counts and node in self.cohort.nodes]
        requests = dict.fromkeys(left, request)
        for node, submission in self.cohort.stream(protocol.PREDICT, requests, read):
            counts[node] = int((submission.predictions == batch.labels).sum())
            self.submissions.save(node, batch.digest, submission, counts[node], key)
        return counts
