"""A test set that is released by a strategy: who is ranked where, and what that gives away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients.data.examples import Examples
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.generator import NoiseGenerator
from pudica.models.training import predict
from pudica.strategies.themis.leaderboard import leaderboard
from pudica.strategies.themis.protection import measure_hiding, noisy_chunks
from pudica.strategies.themis.release import Release
from pudica.strategies.themis.submissions import Submissions

if TYPE_CHECKING:
    from pudica.strategies.themis.strategy import Themis


class TestRelease:
    """Test images that somebody's own app releases.

    Parameters
    ----------
    strategy : Themis
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
        strategy: Themis,
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
        self.contestants = {name: (name, strategy.variant_of(name)) for name in cohort.nodes}

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
    labels = torch.cat([y for _, _, y in noisy_chunks(test, noise, (seed, "draw"))])
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
