"""Evaluation: release test images, score the predictions, measure protection, publish."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from pudica import models
from pudica.clients import protocol
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive
from pudica.strategies.core.spreadsheets import write_csv
from pudica.strategies.themis.leaderboard import (
    Gaussian,
    agreement,
    evaluate_rank_condition,
    leaderboard,
)
from pudica.strategies.themis.organiser import SHARED, Organiser
from pudica.strategies.themis.protection import Examiner, measure_hiding, noisy_chunks
from pudica.strategies.themis.release import VARIANTS, Contestants, Release, select_variant
from pudica.strategies.themis.submissions import Submissions

SAMPLES = 8
"""Test images that are kept as released, for Figure 3."""
MOMENTS_SAMPLE = 2000
"""Public images whose mean and variance stand for the data in Eq. (1)."""


class Evaluation:
    """Releases, scores and results of all cases of a competition."""

    def __init__(self, organiser: Organiser) -> None:
        self.organiser = organiser
        self.settings = organiser.settings
        self.recorder = organiser.recorder
        self.bounds = self.settings.release_bounds
        self.test = organiser.data.test
        self.submissions = Submissions(self.recorder, organiser.cohort.registry)
        self.release = Release(
            organiser.cohort,
            self.test,
            organiser.data.num_classes,
            self.settings.release.images_per_message,
            self.settings.min_participants,
            organiser.secret,
            self.submissions,
        )

    def measure_shared(self) -> None:
        """Measure what is the same in all cases: plain images, untrained noise, densities."""
        contestants = self.organiser.contestants()
        if self.settings.release.compare:
            self._measure_accuracy("plain", SHARED, contestants, None)
            for bound in self.bounds:
                noise = self.organiser.untrained(bound)
                self._measure_accuracy("untrained", SHARED, contestants, noise)
                self._measure_protection("untrained", SHARED, noise)
            self._measure_densities(contestants)

    def measure_case(self, case: str, generator: NoiseGenerator) -> None:
        """Release the noisy test set of one case at every M, and score the predictions."""
        for bound in self.bounds:
            noise = _with_bound(generator, bound)
            self._measure_accuracy("trained", case, self.organiser.contestants_of(case), noise)
            self._measure_protection("trained", case, noise)

    # ------------------------------------------------------------------------ accuracy

    def _measure_accuracy(
        self, release: str, case: str, contestants: Contestants, noise: NoiseGenerator | None
    ) -> None:
        """Release all draws of the noise; plain images are released once."""
        bound, draws = (noise.bound, self.settings.release.draws) if noise else (0.0, 1)
        tags: dict[str, Any] = {"case": case, "release": release, "M": bound}
        stage = f"evaluation ({' '.join(filter(None, [release, case]))})"
        self.organiser.cohort.reset_failures()
        for draw in range(draws):
            task = f"evaluation/{case}/{release}/{bound!r}/{draw}"
            if not self.recorder.is_finished(task):
                accuracies = self.release.measure_accuracy(contestants, noise, release, case, draw)
                for name, value in accuracies.items():
                    self.recorder.log("evaluation", "accuracy", value, node=name, draw=draw, **tags)
                self.recorder.finish(task)
            self.recorder.progress(stage, draw + 1, draws, "draw")

    def _measure_densities(self, contestants: Contestants) -> None:
        """Ask for the density that each model implies, which Eq. (1) needs."""
        if self.recorder.is_finished("densities"):
            return
        seed = derive(self.organiser.experiment.seed, "densities")
        for variant in VARIANTS:
            names = select_variant(contestants, variant)
            requests = dict.fromkeys(names, self.organiser.request(variant, seed=seed))
            replies = self.organiser.cohort.send_and_receive(
                protocol.DENSITY,
                requests,
                lambda _, reply: {k: protocol.number_of(reply, k) for k in ("mean", "variance")},
            )
            for node, density in replies.items():
                for key, value in density.items():
                    self.recorder.log("density", key, value, node=names[node])
        self.recorder.finish("densities")

    # ---------------------------------------------------------------------- protection

    def _measure_protection(self, release: str, case: str, noise: NoiseGenerator) -> None:
        """Measure how well the first draw of a release hides the test images."""
        task = f"protection/{case}/{release}/{noise.bound!r}"
        if self.recorder.is_finished(task):
            return
        seed = self.release.draw_seed(release, case, noise.bound, 0)
        sigma = noise.sigma().detach()
        values = {
            "mean_sigma": float(sigma.mean()),
            "chance": float(np.bincount(self.test.labels).max() / len(self.test)),
            "mean_sigma_pixels": float((sigma * self.test.std).mean()),
            **measure_hiding(self.test, noise, seed, None),
        }
        if self.settings.examiner:
            examiner = self.examiner
            denoiser = examiner.select_denoiser(noise)
            denoised = measure_hiding(self.test, noise, seed, denoiser)
            values |= {
                "examiner_accuracy": examiner.accuracy(self.test, noise, seed, denoiser),
                "examiner_accuracy_as_released": examiner.accuracy(self.test, noise, seed, None),
                "examiner_accuracy_plain": models.accuracy(
                    examiner.model, self.test, self.organiser.compute
                ),
                "psnr_denoised": denoised["psnr"],
                "ssim_denoised": denoised["ssim"],
                "denoiser_width": denoiser.width,
                "denoiser_weighted": float(denoiser.weighted),
            }
        for metric, value in values.items():
            tags: dict[str, Any] = {"case": case, "release": release, "M": noise.bound}
            self.recorder.log("protection", metric, value, **tags)
        self.recorder.finish(task)

    @cached_property
    def examiner(self) -> Examiner:
        """The examiner, trained when it is first needed."""
        organiser, config = self.organiser, self.settings.examiner
        if config is None:
            raise RuntimeError("this experiment has no examiner")
        with self.recorder.timed("examiner"):
            return Examiner(
                config,
                organiser.data,
                organiser.experiment.seed,
                organiser.compute,
                self.recorder,
            )

    # --------------------------------------------------------------------- publication

    def publish(self, case: str, generator: NoiseGenerator) -> None:
        """Write leaderboard, rank agreement, Eq. (1), and what the plots are drawn from, once."""
        if self.recorder.is_finished(f"published/{case}"):
            return
        trained = self._find_accuracies(case, "trained", case, self.bounds[0])
        plain = untrained = None
        if self.settings.release.compare:
            found = self._find_accuracies(case, "plain", SHARED, 0.0)
            plain = {name: draws[0] for name, draws in found.items()}
            untrained = self._find_accuracies(case, "untrained", SHARED, self.bounds[0])
            self._log_agreement(case, plain, {"trained": trained, "untrained": untrained})
            self._write_rank_condition(case, plain, trained, generator)
        board = leaderboard(trained, plain, untrained)
        write_csv(board, self.recorder.artefact(f"{case}/leaderboard.csv"))
        for name, rank in zip(board["model"], board["rank"], strict=True):
            self.recorder.log("leaderboard", "rank", int(rank), node=name, case=case)
        np.savez_compressed(
            self.recorder.artefact(f"{case}/generator.npz"),
            trained=generator.pack(),
            untrained=self.organiser.untrained(generator.bound).pack(),
            M=generator.bound,
            release_M=np.array(self.bounds),
        )
        self._save_samples(case, generator)
        self.submissions.publish(len(self.test), self.settings.release.draws)
        self.recorder.finish(f"published/{case}")

    def _find_accuracies(
        self, case: str, release: str, released_as: str, bound: float
    ) -> dict[str, list[float]]:
        """Return the accuracies of a case's contestants on each draw of a release."""
        wanted = {"stage": "evaluation", "release": release, "case": released_as, "M": bound}
        rows = [r for r in self.recorder.rows if all(r.get(k) == v for k, v in wanted.items())]
        found = {(r["node"], r["draw"]): r["value"] for r in rows}
        draws = self.settings.release.draws if release != "plain" else 1
        # Whoever was absent when a draw was released has predicted nothing of it.
        return {
            name: [found.get((name, draw), 0.0) for draw in range(draws)]
            for name in self.organiser.contestants_of(case)
        }

    def _log_agreement(
        self, case: str, plain: dict[str, float], releases: dict[str, dict[str, list[float]]]
    ) -> None:
        for release, draws in releases.items():
            tags: dict[str, Any] = {"case": case, "release": release, "M": self.bounds[0]}
            means = {name: float(np.mean(values)) for name, values in draws.items()}
            for metric, value in agreement(plain, means).items():
                self.recorder.log("leaderboard", metric, value, **tags)

    def _write_rank_condition(
        self,
        case: str,
        plain: dict[str, float],
        trained: dict[str, list[float]],
        generator: NoiseGenerator,
    ) -> None:
        densities: dict[str, Gaussian] = {}
        for name in plain:
            rows = [r for r in self.recorder.rows if r["stage"] == "density" and r["node"] == name]
            found = {row["metric"]: row["value"] for row in rows}
            densities[name] = (found.get("mean", np.nan), found.get("variance", np.nan))
        train = self.organiser.data.train
        x = train.batch(np.arange(min(len(train), MOMENTS_SAMPLE)))[0].double()
        data = float(x.mean()), float(x.var(correction=0))
        noise = _with_bound(generator, self.bounds[0])
        with torch.no_grad():
            variance = noise.sigma().square().mean() + noise.mu.var(correction=0)
            of_noise = float(noise.mu.mean()), float(variance)
        table = evaluate_rank_condition(plain, trained, densities, data, of_noise)
        write_csv(table, self.recorder.artefact(f"{case}/rank_condition.csv"))

    def _save_samples(self, case: str, generator: NoiseGenerator) -> None:
        """Save a few test images as released, in [0, 1] units, for Figure 3.

        Plain ones only if they were released too: this folder may be handed out.
        """
        few = self.test.subset(np.arange(min(SAMPLES, len(self.test))))
        releases = {"trained": (generator, case)}
        if self.settings.release.compare:
            untrained = self.organiser.untrained(generator.bound)
            releases = {"untrained": (untrained, SHARED), **releases}
        shown: dict[str, np.ndarray] = {}
        for bound in self.bounds:
            for release, (noise, released_as) in releases.items():
                seed = self.release.draw_seed(release, released_as, bound, 0)
                x, noisy, _ = next(noisy_chunks(few, _with_bound(noise, bound), seed))
                if self.settings.release.compare:
                    shown["plain"] = few.denormalise(x).numpy()
                shown[f"{release} M={bound:g}"] = few.denormalise(noisy).numpy()
        np.savez_compressed(
            self.recorder.artefact(f"{case}/samples.npz"), allow_pickle=False, **shown
        )


def _with_bound(generator: NoiseGenerator, bound: float) -> NoiseGenerator:
    """Return the same μ and ρ under another M."""
    return NoiseGenerator(torch.from_numpy(generator.pack()), bound)
