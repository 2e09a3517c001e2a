"""Feature-space hijacking: a cloud that steers a front until its activations can be inverted."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import mse_loss, one_hot

from pudica.clients.data import ImageSet
from pudica.clients.shields.front import Front
from pudica.models.randomness import derive, numpy_generator, temporary_seed, torch_generator

WIDTH = 256
CRITIC_WIDTH = 128
LEARNING_RATE = 2e-3
CRITIC_RATE = 2e-3
CRITIC_BETAS = (0.0, 0.9)
"""Those of Gulrajani et al. 2017, "Improved Training of Wasserstein GANs"."""
CRITIC_STEPS = 5
PENALTY = 0.3
PILOT_STEPS, DECODER_STEPS = 500, 200
BATCH = 64


class FeatureSpaceHijacking:
    """The cheating cloud's side of the attack on one device.

    Pasquini, Ateniese and Bernaschi, "Unleashing the Tiger: Inference Attacks on Split Learning"
    (CCS 2021), section 3. The gradient at the cut decides what a front learns, and a device can't
    tell which loss it belongs to. The cloud trains an encoder (the *pilot*) and its decoder on its
    own *shadow* images, and returns the gradient of an adversarial loss: the front learns to
    imitate the pilot, and the decoder inverts what the device sends.

    In three things it differs from the paper. The pilot has the front's layers, which the cloud
    chose, and the device's shield, so that it learns to be inverted through the noise. Pilot and
    decoder are trained beforehand, so that the front's target does not move. The critic is given
    the labels, which cross the cut in the clear.

    Parameters
    ----------
    shadow : ImageSet
    pilot : Front
        A front with the same activation shape as the device's, and other weights. Weights
        without gradient stay fixed: a pilot with the weights of a front that is known makes
        :meth:`rebuild` plain model inversion, without hijacking.
    seed : int
    """

    def __init__(self, shadow: ImageSet, pilot: Front, seed: int) -> None:
        self.pilot = pilot.train()
        self.images, self.labels = shadow.batch(slice(None))
        self.targets = shadow.pixels(slice(None))
        self.classes = shadow.num_classes
        self._noise = numpy_generator(seed, "hijacking", "noise")
        self._choice = torch_generator(seed, "hijacking", "choice")
        features, pixels = math.prod(pilot.shield.shape), self.targets[0].numel()
        with temporary_seed(derive(seed, "hijacking", "networks")):
            decoder = nn.Sequential(nn.Flatten(), *_perceptron(features, WIDTH, WIDTH, pixels))
            self.critic = nn.Sequential(
                *_perceptron(features + self.classes, CRITIC_WIDTH, CRITIC_WIDTH // 2, 1, slope=0.2)
            )
        self._train(decoder, [*pilot.parameters(), *decoder.parameters()], PILOT_STEPS, draws=1)
        pilot.requires_grad_(False)
        self._decoders: dict[int, nn.Module] = {1: decoder}
        self._optimizer = torch.optim.Adam(self.critic.parameters(), CRITIC_RATE, CRITIC_BETAS)

    def gradient(self, smashed: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient to send back for what a device sent; the critic learns from it.

        The front's loss is ``mean D(f(x_priv))``. The critic D minimises
        ``mean D(f̃(x_pub)) − mean D(f(x_priv))`` and a gradient penalty, which is the Wasserstein
        variant of the authors' code (their ``FSHA.py``); f̃ is the pilot.

        Parameters
        ----------
        smashed : Tensor of shape (N, *shape)
        labels : int64 Tensor of shape (N,), optional
            Without them the critic judges activations alone, as in the paper.

        Returns
        -------
        Tensor of shape (N, *shape)
        """
        private = smashed.detach()
        known = self._one_hot(labels, len(private))
        for _ in range(CRITIC_STEPS):
            loss = self._critic_loss(private, self._shadows(labels, len(private)), known)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        steered = private.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self._scores(steered, known).mean(), steered)
        return gradient

    @torch.no_grad()
    def rebuild(self, smashed: torch.Tensor, draws: int = 1) -> torch.Tensor:
        """Decode smashed data (N, *shape) to images (N, C, H, W) in [0, 1].

        ``smashed`` is the mean of some releases of each image. A mean has less noise, and gets its
        own decoder.
        """
        if draws not in self._decoders:
            decoder = self._decoders[draws] = copy.deepcopy(self._decoders[1])
            with torch.enable_grad():
                self._train(decoder, list(decoder.parameters()), DECODER_STEPS, draws)
        pixels: torch.Tensor = self._decoders[draws](smashed)
        return pixels.clamp(0, 1).reshape(len(smashed), *self.targets.shape[1:])

    def _train(
        self, decoder: nn.Module, parameters: list[nn.Parameter], steps: int, draws: int
    ) -> None:
        """Train on shadow images: reconstruction error over ``draws`` draws of the noise."""
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], LEARNING_RATE)
        size = min(BATCH, self.pilot.shield.batch_size)
        for _ in range(steps):
            chosen = torch.randint(len(self.images), (size,), generator=self._choice)
            loss = mse_loss(decoder(self._smash(chosen, draws)), self.targets[chosen].flatten(1))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _smash(self, chosen: torch.Tensor, draws: int = 1) -> torch.Tensor:
        """Return shadow images as they would cross: through pilot and shield."""
        activations = self.pilot(self.images[chosen])
        protected = [self.pilot.shield.protect(activations, self._noise)[0] for _ in range(draws)]
        return torch.stack(protected).mean(0)

    def _critic_loss(
        self, private: torch.Tensor, shadow: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        share = torch.rand(len(private), generator=self._choice)
        share = share.reshape(-1, *[1] * (private.ndim - 1))
        between = (share * private + (1 - share) * shadow).requires_grad_()
        total = self._scores(between, known).sum()
        (slope,) = torch.autograd.grad(total, between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        apart = self._scores(shadow, known).mean() - self._scores(private, known).mean()
        loss: torch.Tensor = apart + PENALTY * penalty
        return loss

    def _scores(self, smashed: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.critic(torch.cat([smashed.flatten(1), known], 1))
        return scores

    def _one_hot(self, labels: torch.Tensor | None, count: int) -> torch.Tensor:
        if labels is None:
            return torch.zeros(count, self.classes)
        return one_hot(labels, self.classes).float()

    @torch.no_grad()
    def _shadows(self, labels: torch.Tensor | None, count: int) -> torch.Tensor:
        """Return shadow images' activations, of the same classes where labels are known."""
        if labels is None:
            return self._smash(torch.randint(len(self.images), (count,), generator=self._choice))
        # For a class without shadow images any image will do.
        fits = (self.labels == labels[:, None]).float() + 1e-9
        return self._smash(torch.multinomial(fits, 1, generator=self._choice)[:, 0])


def _perceptron(*widths: int, slope: float = 0.0) -> Sequence[nn.Module]:
    """Return linear layers with (leaky) ReLU between them."""
    pairs = [(nn.Linear(*sizes), nn.LeakyReLU(slope)) for sizes in pairwise(widths)]
    return [layer for pair in pairs for layer in pair][:-1]


def correlations(
    images: torch.Tensor, others: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """Return Pearson's correlation (N,) of pairs of images (N, C, H, W), less what is expected.

    That is what a blind guess would draw, such as the mean image of the class; 0 where one image of
    a pair equals it.
    """
    pair = [(part - expected).flatten(1).double() for part in (images, others)]
    a, b = (part - part.mean(1, keepdim=True) for part in pair)
    sizes = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(sizes > 0, (a * b).sum(1) / sizes.clamp_min(1e-12), 0.0).float()


class SplitGuard(NamedTuple):
    """Measurements of a device that sends wrong labels with some batches.

    Attributes
    ----------
    score : float
        SplitGuard's score, 0 to 1: 0.25 if wrong labels make no difference.
    fake_angle, usual_angle : float
        Between the mean gradients on wrong labels and on true ones, and on two random halves of the
        true ones; in radians.
    """

    score: float
    fake_angle: float
    usual_angle: float


def splitguard(
    fake: torch.Tensor, first: torch.Tensor, second: torch.Tensor, alpha: float = 5.0
) -> SplitGuard:
    """Measure how strongly a front's gradients depend on the labels, as a device can.

    Erdoğan, Küpçü and Çiçek, "SplitGuard: Detecting and Mitigating Training-Hijacking Attacks in
    Split Learning" (WPES 2022). An honest cloud's gradients on wrong labels differ in direction and
    are longer; those of a cloud that does not train on the labels do not change. The
    score weighs angles by differences of lengths, as the authors' code does.

    Parameters
    ----------
    fake, first, second : Tensor of shape (·, n)
        Gradients on batches with wrong labels, and with true labels, split at random.
    alpha : float
        α in ``σ(α·S)^β``, with β = 2.
    """
    ends = [part.mean(0) for part in (fake, first, second)]
    sizes = [part.norm(dim=1).mean() for part in (fake, first, second)]
    fake_angle, usual_angle = _angle(ends[0], (ends[1] + ends[2]) / 2), _angle(ends[1], ends[2])
    longer, differ = (sizes[0] - (sizes[1] + sizes[2]) / 2).abs(), (sizes[1] - sizes[2]).abs()
    weighed = (fake_angle * longer - usual_angle * differ) / (longer + differ + 1e-12)
    score = torch.sigmoid(alpha * weighed).square()
    return SplitGuard(float(score), float(fake_angle), float(usual_angle))


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12)
    return torch.acos(cosine.clamp(-1, 1))
