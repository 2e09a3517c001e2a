"""Evaluation: the organiser releases test images, participants send predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.clients.data import ImageSet
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive
from pudica.strategies.themis.organiser import SHARED, Organiser
from pudica.strategies.themis.protection import Examiner, Seed, measure_hiding
from pudica.strategies.themis.release import VARIANTS, Contestants, Release, of_variant
from pudica.strategies.themis.submissions import Submissions


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
        self.release = Release(
            organiser.cohort,
            self.test,
            organiser.data.num_classes,
            self.settings.release.images_per_message,
            self.submissions,
        )
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
                minimum = self.settings.min_participants
                correct = self.release.count_correct(
                    contestants, noise, drawn, minimum, **tags, draw=draw
                )
                for name, count in correct.items():
                    share = count / len(self.test)
                    self.recorder.log("evaluation", "accuracy", share, node=name, draw=draw, **tags)
                self.recorder.finish(task)
            self.recorder.progress(stage, draw + 1, draws, "draw")

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
            **measure_hiding(self.test, noise, seed, None),
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
        after = measure_hiding(test, noise, seed, denoiser)
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
