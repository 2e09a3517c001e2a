"""Released images, and how many of them each participant's model gets right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
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


def of_variant(contestants: Contestants, variant: str) -> dict[str, str]:
    """Return the leaderboard names of one variant's contestants, by node."""
    return {node: name for name, (node, v) in contestants.items() if v == variant}


class PredictBatch(NamedTuple):
    """Some released images, as one message has them.

    Attributes
    ----------
    images : Array
    labels : ndarray of shape (N,)
        The organiser's alone.
    digest : str
        Of the images, where participants sign what they predict.
    of : dict
        Which release they are of, and which images are the first.
    """

    images: Array
    labels: np.ndarray
    digest: str
    of: dict[str, str | float]


class Release:
    """A test set that is released under noise, and the predictions for it.

    Parameters
    ----------
    cohort : Cohort
    test : ImageSet or Examples
    classes : int
    images_per_message : int
    submissions : Submissions
        Where predictions are kept, in a deployment.
    """

    def __init__(
        self,
        cohort: Cohort,
        test: ImageSet | Examples,
        classes: int,
        images_per_message: int,
        submissions: Submissions,
    ) -> None:
        self.cohort = cohort
        self.test = test
        self.classes = classes
        self.images_per_message = images_per_message
        self.submissions = submissions

    def count_correct(
        self,
        contestants: Contestants,
        noise: NoiseGenerator | None,
        seed: Seed,
        minimum: int,
        **of: str | float,
    ) -> dict[str, int]:
        """Return how many released test images each contestant classifies correctly.

        Parameters
        ----------
        noise : NoiseGenerator or None
            None releases the images as they are.
        seed : tuple
            Of the noise, a secret of the organiser's.
        minimum : int
            So many participants must reply.
        **of
            Which release it is, for the record of submissions.
        """
        correct, answered = dict.fromkeys(contestants, 0), set[str]()
        for batch in self._batches(noise, seed, of):
            for variant in VARIANTS:
                names = of_variant(contestants, variant)
                counts = self._predict(batch, variant, list(names))
                for node, count in counts.items():
                    correct[names[node]] += count
                answered.update(counts)
        self.cohort.require_min_replies(minimum, len(answered), protocol.PREDICT)
        return correct

    def _predict(self, batch: PredictBatch, variant: str, nodes: list[str]) -> dict[str, int]:
        """Return how many of some released images each node's model gets right.

        Who has answered already, before the run was stopped, is not asked again.
        """
        of = {**batch.of, "variant": variant}
        before = self.submissions.kept(of)
        counts = {node: before[node] for node in nodes if node in before}

        def read(node: str, content: RecordDict) -> Submission:
            submission = Submission.read(content, len(batch.labels), self.classes)
            if problem := self.submissions.problem(node, batch.digest, submission):
                raise ValueError(problem)
            return submission

        config = {"run": self.cohort.recorder.name, "variant": variant}
        request = protocol.request(config, images=batch.images)
        left = [node for node in nodes if node not in counts and node in self.cohort.nodes]
        requests = dict.fromkeys(left, request)
        for node, submission in self.cohort.stream(protocol.PREDICT, requests, read):
            counts[node] = int((submission.predictions == batch.labels).sum())
            self.submissions.keep(node, batch.digest, submission, counts[node], of)
        return counts

    def _batches(
        self, noise: NoiseGenerator | None, seed: Seed, of: Mapping[str, str | float]
    ) -> Iterator[PredictBatch]:
        shape = self.test.batch(np.arange(1))[0].shape[1:]
        none, first = NoiseGenerator(torch.zeros(2, *shape), 0.0), 0
        for x, noisy, labels in noisy_chunks(
            self.test, noise or none, seed, self.images_per_message
        ):
            images = (noisy if noise else x).numpy()
            seen = digest(images) if self.submissions.registry else ""
            yield PredictBatch(Array(images), labels.numpy(), seen, {**of, "first": first})
            first += len(labels)
