"""How well the released test images are hidden: σ, PSNR, SSIM, and an examiner.

The examiner stands in for a human who labels the images by hand: a network trained on plain
images that sees the noisy ones after the best denoising the public can do. Participants know
μ and σ, so the denoiser subtracts μ, then smooths, weighting each pixel by how much it can be
trusted. How much it smooths is chosen on the public validation set, never on the test set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from pudica import models
from pudica.clients.data import ImageSet, Splits
from pudica.clients.data.examples import Examples
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.files import load_tensors, save_tensors
from pudica.models.generator import NoiseGenerator
from pudica.models.randomness import derive, secret_normal
from pudica.models.similarity import psnr, ssim
from pudica.models.training import Training, predict
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.themis.config import ExaminerConfig

# A secret, and what the draw is for.
Seed = tuple[int | str, ...]

WIDTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
CHUNK = 500


@dataclass(frozen=True)
class Denoiser:
    """Subtracts μ, then smooths with a Gaussian window.

    Attributes
    ----------
    width : float
        Standard deviation of the window in pixels; 0 does not smooth.
    weighted : bool
        Weight each pixel by the inverse of its variance σ² (plus a floor) instead of equally.
    subtract : bool
        Whether μ is subtracted.
    """

    width: float = 0.0
    weighted: bool = False
    subtract: bool = True

    def __call__(self, noisy: torch.Tensor, noise: NoiseGenerator) -> torch.Tensor:
        """Return denoised images (B, C, H, W) in the units of ``noisy``."""
        with torch.no_grad():
            clean = noisy - noise.mu if self.subtract else noisy
            if not self.width:
                return clean
            variance = noise.sigma().square()
            trust = 1 / (variance + 1e-3 * variance.max()) if self.weighted else variance * 0 + 1
            return self._smooth(clean * trust) / self._smooth(trust[None])

    def _smooth(self, x: torch.Tensor) -> torch.Tensor:
        radius = min(max(1, round(3 * self.width)), min(x.shape[-2:]) - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
        window = torch.exp(-0.5 * (offsets / self.width) ** 2)
        window = window / window.sum()
        channels = x.shape[1]
        padded = pad(x, (radius,) * 4, mode="reflect")
        rows = conv2d(padded, window.expand(channels, 1, 1, -1), groups=channels)
        return conv2d(rows, window[:, None].expand(channels, 1, -1, 1), groups=channels)


DENOISERS = [Denoiser(subtract=False), Denoiser()] + [
    Denoiser(width, weighted) for width in WIDTHS for weighted in (False, True)
]


def noisy_chunks(
    images: ImageSet | Examples, noise: NoiseGenerator | None, seed: Seed, size: int = CHUNK
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield plain images, their noisy versions and labels, ``size`` at a time.

    The noise of an image depends on ``seed`` and its position only, not on ``size``. Without
    ``noise`` the noisy versions are the plain images.
    """
    secret, *purpose = seed
    for start in range(0, len(images), size):
        positions = np.arange(start, min(start + size, len(images)))
        x, y = images.batch(positions)
        if noise is None:
            yield x, x, y
            continue
        draws = [secret_normal(secret, x.shape[1:], *purpose, int(i)) for i in positions]  # type: ignore[arg-type]
        with torch.no_grad():
            noisy = noise(x, torch.stack(draws))
        yield x, noisy, y


class Examiner:
    """A network trained on plain public images; the recorder keeps it for a resumed run."""

    def __init__(
        self, config: ExaminerConfig, data: Splits, seed: int, compute: Compute, recorder: Recorder
    ) -> None:
        self.data = data
        self.seed = seed
        self.compute = compute
        self.model = self._load_or_train(config, recorder)

    def _load_or_train(self, config: ExaminerConfig, recorder: Recorder) -> nn.Module:
        model = models.build_for(
            config.model,
            self.data.shape,
            num_classes=self.data.num_classes,
            seed=derive(self.seed, "examiner", "weights"),
        )
        path = recorder.artefact("examiner.safetensors")
        if saved := load_tensors(path):
            weights, _ = saved
        else:
            training = Training(model, config.training, derive(self.seed, "examiner"), self.compute)
            while not training.finished:
                training.run_epoch(self.data.train, self.data.validation)
                recorder.progress("examiner", training.epoch, config.training.epochs, "epoch")
            recorder.progress("examiner", config.training.epochs, config.training.epochs, "epoch")
            weights = training.best
            save_tensors(path, weights, {"accuracies": training.accuracies})
        model.load_state_dict(weights)
        return self.compute.move_model(model).eval()

    def accuracy(
        self, images: ImageSet, noise: NoiseGenerator, seed: Seed, denoiser: Denoiser | None
    ) -> float:
        """Return the accuracy on noisy images, denoised if there is a denoiser."""
        correct = 0
        for _, noisy, y in noisy_chunks(images, noise, seed):
            seen = denoiser(noisy, noise) if denoiser else noisy
            correct += int((predict(self.model, seen, self.compute) == y.numpy()).sum())
        return correct / len(images)

    def select_denoiser(self, noise: NoiseGenerator) -> Denoiser:
        """Return the denoiser with which it is most accurate on the noisy validation set."""
        images = self.data.validation
        sample = images.subset(np.arange(min(len(images), 2000)))
        seed = (derive(self.seed, "examiner"), "denoiser")
        return max(DENOISERS, key=lambda d: self.accuracy(sample, noise, seed, d))


def measure_hiding(
    images: ImageSet | Examples, noise: NoiseGenerator, seed: Seed, denoiser: Denoiser | None
) -> dict[str, float]:
    """Return how close released images are to the plain ones.

    Images are compared in [0, 1] units, not clipped, after the denoiser if there is one.

    Returns
    -------
    dict
        ``psnr`` (dB) and ``ssim``, means over images.
    """
    signal = structure = 0.0
    for x, noisy, _ in noisy_chunks(images, noise, seed):
        seen = denoiser(noisy, noise) if denoiser else noisy
        plain, released = images.denormalise(x), images.denormalise(seen)
        signal += float(psnr(released, plain).sum())
        structure += float(ssim(released, plain).sum())
    return {"psnr": signal / len(images), "ssim": structure / len(images)}


def measure_protection(
    noise: NoiseGenerator, test: Examples, seed: int, examiner: nn.Module | None
) -> dict[str, float]:
    """Return how well noise hides images; see :meth:`.Themis.protection`."""
    _, labels = test.batch(np.arange(len(test)))
    measured = {
        "mean_sigma": float(noise.sigma().detach().mean()),
        **measure_hiding(test, noise, (seed, "draw"), None),
        "chance": float(torch.bincount(labels).max() / len(labels)),
    }
    if examiner is None:
        return measured
    compute = Compute(ComputeConfig())
    frozen = compute.move_model(examiner.eval())
    chunks = list(noisy_chunks(test, noise, (seed, "draw")))
    for metric, which in (("examiner_accuracy", 1), ("examiner_accuracy_plain", 0)):
        predicted = np.concatenate([predict(frozen, chunk[which], compute) for chunk in chunks])
        measured[metric] = float((torch.from_numpy(predicted) == labels).float().mean())
    return measured
