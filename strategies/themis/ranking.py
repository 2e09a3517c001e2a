"""A strategy that ranks participants on test images under trained noise."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import pandas as pd
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients import protocol
from pudica.clients.data.examples import Examples
from pudica.models.errors import RequestError
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive, torch_generator
from pudica.strategies.core.strategy import RecordedStrategy
from pudica.strategies.themis.config import ThemisConfig
from pudica.strategies.themis.leaderboard import leaderboard
from pudica.strategies.themis.protection import measure_protection
from pudica.strategies.themis.release import Release
from pudica.strategies.themis.rounds import variant_of
from pudica.strategies.themis.submissions import Submissions


class RankingStrategy(RecordedStrategy):
    """What :class:`.Themis` offers once the noise is trained: leaderboard and protection."""

    settings: ThemisConfig

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the participants' images."""
        return next(iter(self._members.values())).shape

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

    def generator(self, arrays: ArrayRecord) -> NoiseGenerator:
        """Return the noise generator of some arrays."""
        return NoiseGenerator(stack(arrays, protocol.GENERATOR), self.settings.M)

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
            As models take them. Only noisy versions are sent, unless ``compare``.
        labels : Tensor of shape (N,)
            Never sent.
        draws : int
            Independent draws of the noise: ranks can depend on one.
        compare : bool
            Also release the plain images and the untrained noise, to compare with. Never in a
            real competition: it gives the test set away.
        secret : bool
            Draw the noise from the system's randomness. Otherwise it comes from ``seed``, and
            whoever guesses that can subtract it: for simulations only.

        Returns
        -------
        DataFrame
            As of :func:`pudica.strategies.themis.leaderboard.leaderboard`: one row a
            participant, best first.

        Raises
        ------
        RequestError
            Images of another shape than the participants', or without a label each.
        TooFewParticipants
            Fewer than ``min_nodes`` predict.
        """
        self.join(grid, timeout)
        shape = self.shape
        if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) != len(labels):
            raise RequestError(
                f"images: of shape {tuple(images.shape)} with {len(labels)} labels; the "
                f"participants' images are {shape}, and each needs a label"
            )
        release = Release(
            self.cohort,
            Examples(TensorDataset(images, labels), "test"),
            next(iter(self._members.values())).classes,
            images_per_message,
            self.min_nodes,
            secrets.randbits(256) if secret else derive(self.seed, "test-noise"),
            Submissions(self.recorder, None),
        )
        contestants = {name: (name, variant_of(self.settings, name)) for name in self.cohort.nodes}

        def measure(
            noise: NoiseGenerator | None, kind: str, case: str, draws: int
        ) -> dict[str, list[float]]:
            each_draw = [
                release.measure_accuracy(contestants, noise, kind, case, draw)
                for draw in range(draws)
            ]
            return {name: [accuracies[name] for accuracies in each_draw] for name in contestants}

        trained = measure(self.generator(arrays), "trained", self.case, draws)
        if not compare:
            return leaderboard(trained)
        plain = {name: values[0] for name, values in measure(None, "plain", "", 1).items()}
        initial = self.generator(self.untrained(shape, self.settings.M, self.seed))
        return leaderboard(trained, plain, measure(initial, "untrained", "", draws))

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
        """Return how well the noise hides images: the price of the participants' accuracies.

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
        test = Examples(TensorDataset(images, labels), "test")
        test.mean, test.std = mean, std
        seed = derive(self.seed, "protection")
        return measure_protection(self.generator(arrays), test, seed, examiner)


def stack(arrays: ArrayRecord, keys: Iterable[str]) -> torch.Tensor:
    """Return some arrays of one shape as one tensor.

    Raises
    ------
    RequestError
        A key that is missing, or arrays of different shapes.
    """
    wanted = list(keys)
    if sorted(arrays) != sorted(wanted):
        raise RequestError(f"arrays: {sorted(arrays)} given; wanted are {wanted}")
    tensors = [torch.from_numpy(arrays[key].numpy().copy()) for key in wanted]
    if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
        raise RequestError(f"arrays: of shapes {sorted(shapes)}; all must have the same")
    return torch.stack(tensors)
