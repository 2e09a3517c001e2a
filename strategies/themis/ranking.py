"""A test set that is released by a strategy: who is ranked where, and what that gives away."""

from __future__ import annotations

import secrets

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients import protocol
from pudica.clients.data.examples import Examples
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive, torch_generator
from pudica.models.training import predict
from pudica.strategies.core.strategy import RecordedStrategy, stack
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.leaderboard import leaderboard
from pudica.strategies.themis.protection import measure_hiding, noisy_chunks
from pudica.strategies.themis.release import Release
from pudica.strategies.themis.requests import variant_of
from pudica.strategies.themis.submissions import Submissions


class RankingStrategy(RecordedStrategy):
    """What :class:`.Themis` does once the noise is trained: it ranks, and says what is hidden.

    Attributes
    ----------
    settings : ThemisConfig
    shape, classes : tuple of int, int
        Of the participants' images.
    """

    settings: ThemisConfig

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height and width."""
        return next(iter(self._members.values())).shape

    @property
    def classes(self) -> int:
        """How many classes the participants tell apart."""
        return next(iter(self._members.values())).classes

    def generator(self, arrays: ArrayRecord) -> NoiseGenerator:
        """Return the noise generator of some arrays."""
        return NoiseGenerator(stack(arrays, protocol.GENERATOR), self.settings.M)

    @staticmethod
    def untrained(shape: tuple[int, int, int], M: float = 1.0, seed: int = 0) -> ArrayRecord:
        """Return the arrays before any training: μ ~ N(0, 0.2²), ρ ~ N(0, 1).

        Parameters
        ----------
        shape : tuple of int
            Channels, height and width of an image.
        """
        generator = NoiseGenerator.untrained(shape, M, torch_generator(seed, "generator"))
        return protocol.generator_arrays(generator.pack())

    def leaderboard(
        self,
        grid: Grid,
        arrays: ArrayRecord,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        draws: int = 5,
        compare: bool = True,
        secret: bool = False,
        images_per_message: int = 1000,
        timeout: float = 3600,
    ) -> pd.DataFrame:
        """Release test images under the trained noise, and rank the participants' predictions.

        Parameters
        ----------
        arrays : ArrayRecord
            The trained generator.
        images : Tensor of shape (N, C, H, W)
            As models take them. They stay here, but for what is released.
        labels : Tensor of shape (N,)
            They stay here.
        draws : int
            Independent draws of the noise: ranks can hang on one.
        compare : bool
            Also release the images as they are, and under untrained noise, to compare with. Never
            in a real competition: it gives the test set away.
        secret : bool
            Draw the noise from the system's randomness. Otherwise it comes from ``seed``, and
            whoever guesses that can subtract it.

        Returns
        -------
        DataFrame
            As of :func:`pudica.strategies.themis.leaderboard.leaderboard`: one row a
            participant, best first.

        Raises
        ------
        TooFewParticipants
            Fewer than ``min_nodes`` predict.
        """
        self.join(grid, timeout)
        drawn = secrets.randbits(256) if secret else derive(self.seed, "test-noise")
        release = TestRelease(self, images, labels, drawn, images_per_message)
        return release.rank(arrays, draws, compare)

    def protection(
        self,
        arrays: ArrayRecord,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        examiner: nn.Module | None = None,
        mean: torch.Tensor | float = 0.0,
        std: torch.Tensor | float = 1.0,
    ) -> dict[str, float]:
        """Return how well noise hides images: what the participants' accuracies are paid with.

        Parameters
        ----------
        images : Tensor of shape (N, C, H, W)
        labels : Tensor of shape (N,)
        examiner : Module, optional
            A network trained on plain images, which stands in for a human who labels the noisy
            ones by hand. What it gets right is not hidden.
        mean, std : Tensor or float
            By which the images were normalised, so that PSNR and SSIM compare them in [0, 1].

        Returns
        -------
        dict
            ``mean_sigma``, ``psnr`` (dB), ``ssim``, ``chance`` and, with an examiner,
            ``examiner_accuracy`` on noisy and ``examiner_accuracy_plain`` on plain images.
        """
        noise = self.generator(arrays)
        test = Examples(TensorDataset(images, labels), "test")
        test.mean, test.std = mean, std
        return measure_protection(noise, test, derive(self.seed, "protection"), examiner)


class TestRelease:
    """Test images that somebody's own app releases.

    Parameters
    ----------
    strategy : RankingStrategy
        With participants that have joined.
    images : Tensor of shape (N, C, H, W)
    labels : Tensor of shape (N,)
    secret : int
        From which the noise is drawn.
    images_per_message : int

    Raises
    ------
    RequestError
        Images of another shape than the participants', or without a label each.
    """

    def __init__(
        self,
        strategy: RankingStrategy,
        images: torch.Tensor,
        labels: torch.Tensor,
        secret: int,
        images_per_message: int,
    ) -> None:
        shape = strategy.shape
        if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) != len(labels):
            raise RequestError(
                f"images: of shape {tuple(images.shape)} with {len(labels)} labels; the "
                f"participants' images are {shape}, and each needs a label"
            )
        self.strategy = strategy
        self.secret = secret
        self.test = Examples(TensorDataset(images, labels), "test")
        cohort = strategy.cohort
        none = Submissions(strategy.recorder, None)
        self.release = Release(cohort, self.test, strategy.classes, images_per_message, none)
        self.contestants = {
            name: (name, variant_of(strategy.settings, name)) for name in cohort.nodes
        }

    def rank(self, arrays: ArrayRecord, draws: int, compare: bool) -> pd.DataFrame:
        """Return the leaderboard; arguments as of :meth:`.Themis.leaderboard`."""
        strategy, M = self.strategy, self.strategy.settings.M
        noisy = self._measure(strategy.generator(arrays), "trained", strategy.case, M, draws)
        if not compare:
            return leaderboard(noisy)
        plain = self._measure(None, "plain", "", 0.0, 1)
        begun = strategy.generator(strategy.untrained(strategy.shape, M, strategy.seed))
        untrained = self._measure(begun, "untrained", "", M, draws)
        return leaderboard(noisy, {name: each[0] for name, each in plain.items()}, untrained)

    def _measure(
        self, noise: NoiseGenerator | None, what: str, case: str, bound: float, draws: int
    ) -> dict[str, list[float]]:
        """Return each contestant's accuracy on each draw."""
        accuracies: dict[str, list[float]] = {name: [] for name in self.contestants}
        for draw in range(draws):
            seed = (self.secret, what, case, repr(bound), draw)
            correct = self.release.count_correct(
                self.contestants, noise, seed, self.strategy.min_nodes
            )
            for name, number in correct.items():
                accuracies[name].append(number / len(self.test))
        return accuracies


def measure_protection(
    noise: NoiseGenerator, test: Examples, seed: int, examiner: nn.Module | None
) -> dict[str, float]:
    """Return how well noise hides images; see :meth:`.Themis.protection`."""
    _, labels = test.batch(np.arange(len(test)))
    found = {
        "mean_sigma": float(noise.sigma().detach().mean()),
        **measure_hiding(test, noise, (seed, "draw"), None),
        "chance": float(torch.bincount(labels).max() / len(labels)),
    }
    if examiner is None:
        return found
    compute = Compute(ComputeConfig())
    frozen = compute.move_model(examiner.eval())
    chunks = list(noisy_chunks(test, noise, (seed, "draw")))
    for metric, which in (("examiner_accuracy", 1), ("examiner_accuracy_plain", 0)):
        predicted = np.concatenate([predict(frozen, chunk[which], compute) for chunk in chunks])
        found[metric] = float((torch.from_numpy(predicted) == labels).float().mean())
    return found
