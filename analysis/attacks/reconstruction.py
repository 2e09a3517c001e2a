"""Reconstruction of images from what the cloud sees: Pix2Pix with a Chamfer loss (§4, Figure 5).

A mixture contains all images of its group equally, so the generator draws them all, in any order.
The Hungarian algorithm matches drawn to true images for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, interpolate

from pudica.analysis.attacks.base import (
    CLEAR,
    DRAWN,
    ORIGINAL,
    SHOWN,
    Attack,
    Effort,
    Metrics,
    Outcome,
)
from pudica.analysis.attacks.unmixing import UnmixingResult
from pudica.analysis.views.facemix import (
    FacemixView,
    Observation,
    explain_few,
    explain_no_maps,
    mean,
    split_evenly,
)
from pudica.clients.shields.disguises.steps import ImageShape
from pudica.models.randomness import derive, temporary_seed
from pudica.models.similarity import psnr, ssim

WIDTH = 32
ADVERSARIAL_WEIGHT = 0.01
LEARNING_RATE = 2e-4
BETAS = (0.5, 0.999)
BATCH = 32


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructed images, with the true images they were matched to.

    Attributes
    ----------
    true, drawn : Tensor of shape (N, C, H, W)
        In [0, 1].
    images : int64 ndarray of shape (N,)
        Which image of the test part each true one is.
    mean : Tensor of shape (C, H, W)
        Mean of the attacker's own images: the best blind guess.
    """

    true: torch.Tensor
    drawn: torch.Tensor
    images: np.ndarray
    mean: torch.Tensor

    def similarity(self) -> dict[str, float]:
        """Return ``psnr`` (dB), ``ssim`` and ``mse``, also for the mean image."""
        blind = self.mean.expand_as(self.true)
        return {
            "psnr": float(psnr(self.drawn, self.true).mean()),
            "ssim": float(ssim(self.drawn, self.true).mean()),
            "mse": float((self.drawn - self.true).square().mean()),
            "psnr_of_the_mean": float(psnr(blind, self.true).mean()),
            "ssim_of_the_mean": float(ssim(blind, self.true).mean()),
            "mse_of_the_mean": float((blind - self.true).square().mean()),
        }


def train_generator(view: FacemixView, epochs: int, seed: int) -> Generator:
    """Train a generator to draw the images of the training part from what the cloud sees."""
    channels, shape = view.model.shield.shape[0], view.data.shape
    with temporary_seed(derive(seed, "pix2pix")):
        generator = Generator(channels, view.group, shape)
        critic = Discriminator(channels, shape)
    for network in (generator, critic):
        view.compute.move_model(network)  # in place
    _train_networks(view, generator, critic, epochs, seed)
    return generator.eval()


@torch.no_grad()
def reconstruct(view: FacemixView, generator: Generator, images: int, seed: int) -> Reconstruction:
    """Reconstruct at most ``images`` of the test part with a generator trained for this view.

    Each group is drawn as a whole, from one of its rows.
    """
    groups: list[np.ndarray] = []
    drawn: list[torch.Tensor] = []
    for seen in view.observations(view.data.test, seed, "pix2pix", "test"):
        _, firsts = np.unique(seen.groups[:, 0], return_index=True)
        for row in np.sort(firsts):
            if len(groups) * view.group < images:
                groups.append(seen.groups[row])
                drawn.append(_draw_matched(view, generator, seen, row))
    chosen = np.concatenate(groups)
    return Reconstruction(
        view.data.test.pixels(chosen), torch.cat(drawn), chosen, _mean_image(view)
    )


@torch.no_grad()
def reconstruct_unmixed(
    view: FacemixView, generator: Generator, unmixed: UnmixingResult
) -> Reconstruction:
    """Draw images from unmixed feature maps with a generator trained on maps in the clear."""
    found = unmixed.found.split(BATCH)
    parts = [generator(view.compute.move_batch(part))[:, 0].cpu() for part in found]
    true = view.data.test.pixels(unmixed.images)
    return Reconstruction(true, torch.cat(parts), unmixed.images, _mean_image(view))


def attribute_accuracies(view: FacemixView, rebuilt: Reconstruction) -> dict[str, float]:
    """Return the model's balanced accuracy per attribute on reconstructed images, 0 to 1."""
    parts = split_evenly(np.arange(len(rebuilt.images)), view.request)
    return view.score_attributes(
        (view.predict_attributes(rebuilt.drawn[part]), rebuilt.images[part]) for part in parts
    )


class ImageReconstruction(Attack):
    """Redraws the images of a group from one of its rows."""

    kind = "reconstruction"
    goal = "attribute"
    target = FacemixView

    def _explain_unfit(self, view: FacemixView) -> str:
        return explain_few(view, len(view.data.test)) or explain_no_maps(view)

    def run(self, view: FacemixView, effort: Effort) -> Outcome:
        """Train on what crosses, and on the same in the clear."""
        metrics: Metrics = {"chance": 0.5}
        pictures: dict[str, np.ndarray] = {}
        for suffix, sees in {"": view, CLEAR: view.without_shield()}.items():
            generator = train_generator(sees, effort.epochs, effort.seed)
            rebuilt = reconstruct(sees, generator, effort.images, effort.seed)
            metrics |= {f"{name}{suffix}": value for name, value in rebuilt.similarity().items()}
            metrics[f"success{suffix}"] = mean(attribute_accuracies(view, rebuilt))
            where = ", in the clear" if suffix else ""
            pictures[f"{ORIGINAL}{where}"] = rebuilt.true[:SHOWN].numpy()
            pictures[f"{DRAWN}{where}"] = rebuilt.drawn[:SHOWN].numpy()
        return Outcome(metrics, pictures)


def _mean_image(view: FacemixView) -> torch.Tensor:
    return view.known.pixels(slice(0, 1000)).mean(0)


class Generator(nn.Module):
    """A U-Net from a feature map to the images of its group, (B, S, C, H, W) in [0, 1]."""

    def __init__(self, channels: int, group: int, image: ImageShape) -> None:
        super().__init__()
        self.shape = (group, *image)
        self.first = _block(channels, WIDTH)
        self.down = _block(WIDTH, 2 * WIDTH, stride=2)
        self.bottom = _block(2 * WIDTH, 2 * WIDTH, stride=2)
        self.up = _block(4 * WIDTH, WIDTH)
        self.last = _block(2 * WIDTH, WIDTH)
        self.fine = nn.Sequential(
            _block(WIDTH, WIDTH), nn.Conv2d(WIDTH, group * image[0], 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return drawn images."""
        first = self.first(x)
        down = self.down(first)
        bottom = self.bottom(down)
        up = self.up(torch.cat([_resize(bottom, down.shape[2:]), down], 1))
        last = self.last(torch.cat([_resize(up, first.shape[2:]), first], 1))
        return torch.sigmoid(self.fine(_resize(last, self.shape[2:]))).reshape(len(x), *self.shape)


class Discriminator(nn.Module):
    """A PatchGAN that judges whether each patch of an image is real, given the feature map."""

    def __init__(self, channels: int, image: ImageShape) -> None:
        super().__init__()
        colours, self.size = image[0], image[1:]
        self.sides = (channels, colours)
        self.first = nn.Conv2d(channels + colours, WIDTH, 3, 2, 1, bias=False)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(WIDTH),
            nn.LeakyReLU(0.2),
            _block(WIDTH, 2 * WIDTH, stride=2),
            nn.Conv2d(2 * WIDTH, 1, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return the patch logits of the B·S images of shape (B, S, C, H, W)."""
        # First convolution of [feature map, image]: the map's share is the same for all S images.
        of_map, of_image = self.first.weight.split(self.sides, 1)
        stride, padding = self.first.stride, self.first.padding
        given = conv2d(_resize(x, self.size), of_map, None, stride, padding)
        seen = conv2d(images.flatten(0, 1), of_image, None, stride, padding)
        both = seen + given.repeat_interleave(images.shape[1], 0)
        return self.rest(both)  # type: ignore[no-any-return]


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.LeakyReLU(0.2),
    )


def _resize(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return x if x.shape[2:] == size else interpolate(x, size=size, mode="nearest")


def chamfer(true: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return the Chamfer distance of sets of images, its mean over the batch.

    ``Σ_k min_i |x_k − y_i|₁ + Σ_k min_i |y_k − x_i|₁``, with the mean over pixels in place of the
    sum, and over the set.

    Parameters
    ----------
    true, drawn : Tensor of shape (B, S, C, H, W)
    """
    distances = (true[:, :, None] - drawn[:, None]).abs().flatten(3).mean(3)
    return distances.amin(2).mean() + distances.amin(1).mean()


def _train_networks(
    view: FacemixView, generator: Generator, critic: Discriminator, epochs: int, seed: int
) -> None:
    generator_optimizer, critic_optimizer = (
        torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS)
        for network in (generator, critic)
    )
    for epoch in range(epochs):
        for seen in view.observations(view.known, seed, "pix2pix", epoch):
            for start in range(0, len(seen.rows), BATCH):
                part = slice(start, start + BATCH)
                x = seen.rows[part]
                # The images of each row's group, (B, S, C, H, W) in [0, 1].
                groups = [view.known.pixels(group) for group in seen.groups[part]]
                true = torch.stack(groups).to(x.device)
                drawn = generator(x)
                _step(
                    critic_optimizer,
                    _adversarial_loss(critic(x, true), 1)
                    + _adversarial_loss(critic(x, drawn.detach()), 0),
                )
                fooled = ADVERSARIAL_WEIGHT * _adversarial_loss(critic(x, drawn), 1)
                _step(generator_optimizer, chamfer(true, drawn) + fooled)


def _adversarial_loss(logits: torch.Tensor, truth: float) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    own = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward(inputs=own)  # type: ignore[no-untyped-call]  # not the opponent's
    optimizer.step()


def _draw_matched(
    view: FacemixView, generator: Generator, seen: Observation, row: int
) -> torch.Tensor:
    """Draw the images of a row's group, in the order that matches the true ones best."""
    true = view.data.test.pixels(seen.groups[row])
    drawn = generator(seen.rows[row : row + 1])[0].cpu()
    distances = (true[:, None] - drawn[None]).square().flatten(2).mean(2)
    _, columns = linear_sum_assignment(distances.numpy())
    matched: torch.Tensor = drawn[columns]
    return matched
