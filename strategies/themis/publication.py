"""Publication: leaderboard, rank agreement, Eq. (1), and what the plots are drawn from."""

from __future__ import annotations

import numpy as np
import torch

from pudica.models.generator import NoiseGenerator
from pudica.strategies.core.spreadsheets import write_csv
from pudica.strategies.themis.evaluation import Evaluation
from pudica.strategies.themis.leaderboard import agreement, leaderboard
from pudica.strategies.themis.organiser import SHARED, Organiser
from pudica.strategies.themis.protection import noisy_chunks
from pudica.strategies.themis.rank_condition import Gaussian, rank_condition

SAMPLES = 8


class Publication:
    """What the organiser publishes of one case.

    Parameters
    ----------
    organiser : Organiser
    evaluation : Evaluation
    case : str
    generator : NoiseGenerator
        Trained.
    """

    def __init__(
        self, organiser: Organiser, evaluation: Evaluation, case: str, generator: NoiseGenerator
    ) -> None:
        self.organiser = organiser
        self.evaluation = evaluation
        self.recorder = organiser.recorder
        self.case = case
        self.generator = generator
        self.bounds = organiser.settings.release_bounds

    def publish(self) -> None:
        """Write everything, once."""
        if self.recorder.is_finished(f"published/{self.case}"):
            return
        trained = self._accuracies("trained", self.case, self.bounds[0])
        plain = untrained = None
        if self.organiser.settings.release.compare:
            plain = {n: a[0] for n, a in self._accuracies("plain", SHARED, 0.0).items()}
            untrained = self._accuracies("untrained", SHARED, self.bounds[0])
            self._log_agreement(plain, {"trained": trained, "untrained": untrained})
            self._write_rank_condition(plain, trained)
        board = leaderboard(trained, plain, untrained)
        write_csv(board, self.recorder.artefact(f"{self.case}/leaderboard.csv"))
        for name, rank in zip(board["model"], board["rank"], strict=True):
            self.recorder.log("leaderboard", "rank", int(rank), node=name, case=self.case)
        self._keep_generator()
        self._keep_samples()
        images, draws = len(self.organiser.data.test), self.organiser.settings.release.draws
        self.evaluation.submissions.publish(images, draws)
        self.recorder.finish(f"published/{self.case}")

    def _accuracies(self, release: str, case: str, bound: float) -> dict[str, list[float]]:
        wanted = {"stage": "evaluation", "release": release, "case": case, "M": bound}
        rows = [r for r in self.recorder.rows if all(r.get(k) == v for k, v in wanted.items())]
        found = {(r["node"], r["draw"]): r["value"] for r in rows}
        draws = self.organiser.settings.release.draws if release != "plain" else 1
        # Whoever was away when a draw was released has predicted nothing of it.
        return {
            name: [found.get((name, draw), 0.0) for draw in range(draws)]
            for name in self.organiser.contestants_of(self.case)
        }

    def _log_agreement(
        self, plain: dict[str, float], releases: dict[str, dict[str, list[float]]]
    ) -> None:
        for release, draws in releases.items():
            means = {name: float(np.mean(values)) for name, values in draws.items()}
            for metric, value in agreement(plain, means).items():
                self.recorder.log(
                    "leaderboard",
                    metric,
                    value,
                    case=self.case,
                    release=release,
                    M=self.bounds[0],
                )

    def _write_rank_condition(
        self, plain: dict[str, float], trained: dict[str, list[float]]
    ) -> None:
        densities: dict[str, Gaussian] = {}
        for name in plain:
            rows = [r for r in self.recorder.rows if r["stage"] == "density" and r["node"] == name]
            found = {row["metric"]: row["value"] for row in rows}
            densities[name] = (found.get("mean", np.nan), found.get("variance", np.nan))
        noise = NoiseGenerator(torch.from_numpy(self.generator.pack()), self.bounds[0])
        table = rank_condition(
            plain, trained, densities, self._gaussian_of_data(), gaussian_of(noise)
        )
        write_csv(table, self.recorder.artefact(f"{self.case}/rank_condition.csv"))

    def _gaussian_of_data(self) -> Gaussian:
        """Return mean and variance over all elements of (up to 2,000) public images."""
        images = self.organiser.data.train
        x = images.batch(np.arange(min(len(images), 2000)))[0].double()
        return float(x.mean()), float(x.var(correction=0))

    def _keep_generator(self) -> None:
        np.savez_compressed(
            self.recorder.artefact(f"{self.case}/generator.npz"),
            trained=self.generator.pack(),
            untrained=self.organiser.untrained(self.generator.bound).pack(),
            M=self.generator.bound,
            release_M=np.array(self.bounds),
        )

    def _keep_samples(self) -> None:
        """Keep a few test images as released, in [0, 1] units, for Figure 3.

        Plain ones only where they were released too: this folder may be handed out.
        """
        test = self.organiser.data.test
        few = test.subset(np.arange(min(SAMPLES, len(test))))
        releases = {"trained": (self.generator, self.case)}
        if self.organiser.settings.release.compare:
            untrained = self.organiser.untrained(self.generator.bound)
            releases = {"untrained": (untrained, SHARED), **releases}
        shown: dict[str, np.ndarray] = {}
        for bound in self.bounds:
            for release, (generator, case) in releases.items():
                noise = NoiseGenerator(torch.from_numpy(generator.pack()), bound)
                seed = self.evaluation.seed(release, case, bound, 0)
                x, noisy, _ = next(noisy_chunks(few, noise, seed))
                if self.organiser.settings.release.compare:
                    shown["plain"] = few.denormalise(x).numpy()
                shown[f"{release} M={bound:g}"] = few.denormalise(noisy).numpy()
        np.savez_compressed(
            self.recorder.artefact(f"{self.case}/samples.npz"), allow_pickle=False, **shown
        )


def gaussian_of(noise: NoiseGenerator) -> Gaussian:
    """Return mean and variance of the noise over all elements and draws."""
    with torch.no_grad():
        variance = noise.sigma().square().mean() + noise.mu.var(correction=0)
        return float(noise.mu.mean()), float(variance)
