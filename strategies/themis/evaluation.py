"""Evaluation: the organiser releases test images, participants send predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.clients.submissions import digest
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive
from pudica.strategies.themis.organiser import SHARED, VARIANTS, Contestants, Organiser, of_variant
from pudica.strategies.themis.protection import Examiner, Seed, hiding, noisy_chunks
from pudica.strategies.themis.submissions import Submission, Submissions


class Sheet(NamedTuple):
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


class Evaluation:
    """Releases and scores, for all cases of a competition.

    Parameters
    ----------
    organiser : Organiser
    """

    def __init__(self, organiser: Organiser) -> None:
        self.organiser = organiser
        self.settings = organiser.settings
        self.recorder = organiser.recorder
        self.test = organiser.data.test
        self.submissions = Submissions(self.recorder, organiser.cohort.registry)
        self._examiner: Examiner | None = None

    def shared(self) -> None:
        """Measure what no case changes: plain images, untrained noise, implied densities."""
        contestants = self.organiser.contestants()
        if self.settings.release.compare:
            self._release("plain", SHARED, contestants, None)
            for bound in self.settings.release_bounds:
                noise = self.organiser.untrained(bound)
                self._release("untrained", SHARED, contestants, noise)
                self._protect("untrained", SHARED, noise)
            self._densities(contestants)

    def case(self, case: str, generator: NoiseGenerator) -> None:
        """Release the noisy test set of one case at every M, and score the predictions."""
        for bound in self.settings.release_bounds:
            noise = NoiseGenerator(torch.from_numpy(generator.pack()), bound)
            self._release("trained", case, self.organiser.contestants_of(case), noise)
            self._protect("trained", case, noise)

    def seed(self, release: str, case: str, bound: float, draw: int) -> Seed:
        """Return the seed of one draw of the noise, which only the organiser can know."""
        return self.organiser.secret, release, case, repr(bound), draw

    # ------------------------------------------------------------------------ accuracy

    def _release(
        self, release: str, case: str, contestants: Contestants, noise: NoiseGenerator | None
    ) -> None:
        """Release all draws of one noise; without noise there is nothing to repeat."""
        bound, draws = (noise.bound, self.settings.release.draws) if noise else (0.0, 1)
        tags: dict[str, Any] = {"case": case, "release": release, "M": bound}
        stage = f"evaluation ({' '.join(filter(None, [release, case]))})"
        self.organiser.cohort.reset_failures()
        for draw in range(draws):
            task = f"evaluation/{case}/{release}/{bound!r}/{draw}"
            if not self.recorder.is_finished(task):
                drawn = self.seed(release, case, bound, draw)
                right = self._right(contestants, noise, drawn, **tags, draw=draw)
                for name, count in right.items():
                    share = count / len(self.test)
                    self.recorder.log("evaluation", "accuracy", share, node=name, draw=draw, **tags)
                self.recorder.finish(task)
            self.recorder.progress(stage, draw + 1, draws, "draw")

    def _right(
        self,
        contestants: Contestants,
        noise: NoiseGenerator | None,
        seed: Seed,
        **of: str | float,
    ) -> dict[str, int]:
        """Return how many released test images each contestant classifies rightly.

        ``of``: which release it is, for the record of submissions.
        """
        right, answered = dict.fromkeys(contestants, 0), set[str]()
        for sheet in self._released(noise, seed, of):
            for variant in VARIANTS:
                names = of_variant(contestants, variant)
                counts = self._answers(sheet, variant, list(names))
                for node, count in counts.items():
                    right[names[node]] += count
                answered.update(counts)
        self.organiser.cohort.require_min_replies(
            self.settings.min_participants, len(answered), protocol.PREDICT
        )
        return right

    def _answers(self, sheet: Sheet, variant: str, nodes: list[str]) -> dict[str, int]:
        """Return how many of some released images each node's model gets right.

        Who has answered already, before the run was stopped, is not asked again.
        """
        cohort, of = self.organiser.cohort, {**sheet.of, "variant": variant}
        before = self.submissions.kept(of)
        counts = {node: before[node] for node in nodes if node in before}

        def read(node: str, content: RecordDict) -> Submission:
            said = Submission.read(content, len(sheet.labels), self.organiser.data.num_classes)
            if problem := self.submissions.problem(node, sheet.digest, said):
                raise ValueError(problem)
            return said

        def keep(node: str, said: Submission) -> None:
            counts[node] = int((said.predictions == sheet.labels).sum())
            self.submissions.keep(node, sheet.digest, said, counts[node], of)

        config = {"run": self.organiser.run, "variant": variant}
        request = protocol.request(config, images=sheet.images)
        left = [node for node in nodes if node not in counts and node in cohort.nodes]
        for node, submission in cohort.stream(protocol.PREDICT, dict.fromkeys(left, request), read):
            keep(node, submission)
        return counts

    def _released(
        self, noise: NoiseGenerator | None, seed: Seed, of: Mapping[str, str | float]
    ) -> Iterator[Sheet]:
        none = NoiseGenerator(torch.zeros(2, *self.organiser.data.shape), 0.0)
        size, first = self.settings.release.images_per_message, 0
        for x, noisy, labels in noisy_chunks(self.test, noise or none, seed, size):
            images = (noisy if noise else x).numpy()
            seen = digest(images) if self.submissions.registry else ""
            yield Sheet(Array(images), labels.numpy(), seen, {**of, "first": first})
            first += len(labels)

    def _densities(self, contestants: Contestants) -> None:
        """Ask for the density each model implies, which Eq. (1) needs."""
        if self.recorder.is_finished("densities"):
            return
        seed = derive(self.organiser.experiment.seed, "densities")
        for variant in VARIANTS:
            names = of_variant(contestants, variant)
            requests = dict.fromkeys(names, self.organiser.request(variant, seed=seed))
            replies = self.organiser.cohort.send_and_receive(protocol.DENSITY, requests, _density)
            for node, density in replies.items():
                for key, value in density.items():
                    self.recorder.log("density", key, value, node=names[node])
        self.recorder.finish("densities")

    # ---------------------------------------------------------------------- protection

    def _protect(self, release: str, case: str, noise: NoiseGenerator) -> None:
        """Measure how well the first draw of a release hides the test images."""
        task = f"protection/{case}/{release}/{noise.bound!r}"
        if self.recorder.is_finished(task):
            return
        seed = self.seed(release, case, noise.bound, 0)
        sigma = noise.sigma().detach()
        values = {
            "mean_sigma": float(sigma.mean()),
            "chance": float(np.bincount(self.test.labels).max() / len(self.test)),
            "mean_sigma_pixels": float((sigma * self.test.std).mean()),
            **hiding(self.test, noise, seed, None),
        }
        if self.settings.examiner:
            values |= self._examined(self.test, noise, seed)
        for metric, value in values.items():
            tags: dict[str, Any] = {"case": case, "release": release, "M": noise.bound}
            self.recorder.log("protection", metric, value, **tags)
        self.recorder.finish(task)

    def _examined(self, test: ImageSet, noise: NoiseGenerator, seed: Seed) -> dict[str, float]:
        examiner = self.examiner()
        denoiser = examiner.best_denoiser(noise)
        after = hiding(test, noise, seed, denoiser)
        return {
            "examiner_accuracy": examiner.accuracy(test, noise, seed, denoiser),
            "examiner_accuracy_as_released": examiner.accuracy(test, noise, seed, None),
            "examiner_accuracy_plain": examiner.plain_accuracy(test),
            "psnr_denoised": after["psnr"],
            "ssim_denoised": after["ssim"],
            "denoiser_width": denoiser.width,
            "denoiser_weighted": float(denoiser.weighted),
        }

    def examiner(self) -> Examiner:
        """Return the examiner, trained when it is first needed."""
        if self._examiner is None:
            organiser, config = self.organiser, self.settings.examiner
            if config is None:
                raise RuntimeError("this experiment has no examiner")
            with self.recorder.timed("examiner"):
                self._examiner = Examiner(
                    config,
                    organiser.data,
                    organiser.experiment.seed,
                    organiser.compute,
                    self.recorder,
                )
        return self._examiner


def _density(_: str, content: RecordDict) -> dict[str, float]:
    """Return what a participant says that its model has in mind."""
    return {key: protocol.number_of(content, key) for key in ("mean", "variance")}
