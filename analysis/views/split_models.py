"""The trained model of split learning, as the cloud has it, and how shadows of it are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from pudica.analysis.runs import Run
from pudica.analysis.views.models import (
    DISGUISED,
    Classifier,
    ModelTarget,
    ModelView,
    NoModel,
    Tensors,
    build_whole,
    choose_candidates,
    load_run_data,
    load_run_model,
)
from pudica.clients import protocol, shields
from pudica.clients.data import ImageSet, Splits
from pudica.clients.shields import Mechanism, ShieldConfig, protect_without_noise
from pudica.clients.shields.front import Front, activation_shape
from pudica.models import optimizers
from pudica.models.compute import Compute
from pudica.models.cut import Cutter
from pudica.models.files import load_weights
from pudica.models.randomness import derive, has_random_layers, numpy_generator, seed_random_layers
from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.split.cloud import Cloud
from pudica.strategies.split.config import PRETRAINED, SplitConfig
from pudica.strategies.split.model import build_model, calibrate_shield, fit_means, start_from

SETTLING = 60
"""Batches from which a shield's running statistics are learnt."""


def split_model_target(run: Run, case: str, images: int, seed: int) -> ModelTarget | NoModel:
    """Return the trained model of a case of split learning, from the run's files.

    Parameters
    ----------
    images : int
        Candidates of each kind, at most.

    Raises
    ------
    RequestError
        The case is not done yet, or its data or weights are gone.
    """
    settings = run.section("split", SplitConfig).each_case()[case]
    if settings.front == "private":
        return NoModel("fronts are private: the cloud has no whole model")
    if settings.fit == "none":
        return NoModel("the model is not trained")
    data = load_run_data(run)
    if data.key:
        return NoModel(DISGUISED)
    device, found = (
        Compute(run.section("client", ClientConfig)),
        choose_candidates(data.train, data.test, images, seed),
    )
    recipe = SplitRecipe(run, settings, calibrate_shield(settings), data, device)
    view = ModelView(
        name=f"{run.name}: case '{case}'",
        model=recipe.load(load_run_model(run, case)[0], found.own),
        train=recipe,
        build=partial(build_whole, settings.model, data),
        own=found.own,
        candidates=found.images,
        device=device,
    )
    return ModelTarget(view, found.members)


class WholeModel(nn.Module):
    """Front, shield without its noise, and back."""

    def __init__(self, front: Front, back: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.back = back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes)."""
        parts = self.front(x).split(self.front.shield.batch_size)
        clear = torch.cat([self._protect(part) for part in parts])
        return self.back(clear)  # type: ignore[no-any-return]

    def _protect(self, x: torch.Tensor) -> torch.Tensor:
        shield = self.front.shield
        if isinstance(shield, Mechanism):
            return protect_without_noise(shield, x)
        return shield.protect(x, numpy_generator(0, "membership"))[0]


@dataclass(frozen=True)
class SplitRecipe:
    """Trains shadows of a split model in one place.

    With one batch per message that is what split learning computes: each step is one of the back
    on a batch of every device (of one device, where the front is handed on, or releases are kept),
    and the gradient at the cut goes through the shield to the front. Noise is new. With fewer
    images than the devices have there are as many devices fewer, so that an epoch has as many
    steps. Left out: rounding on the wire, dropouts, and gradients that are some batches old.
    """

    run: Run
    settings: SplitConfig
    shield: ShieldConfig
    data: Splits
    device: Compute

    def __call__(self, images: ImageSet, seed: int) -> Classifier:
        """Return a model that was trained on other images; see :class:`.ModelView`."""
        front, back = self._start()
        trained = _Training(self, front, back, seed)
        if self.settings.release == "once":
            trained.train_once(images)
        else:
            trained.train(images)
        return self._settle(front, back, images)

    def load(self, tensors: Tensors, own: ImageSet) -> Classifier:
        """Return the run's model; of its shield the file holds no running statistics."""
        front, back = self._start()
        for part in (front.layers, back):
            part.load_state_dict({name: tensors[name] for name in part.state_dict()})
        return self._settle(front, back, own)

    def _start(self) -> tuple[Front, nn.Module]:
        """Return the model as training began, which the cloud made: front and back."""
        settings, data = self.settings, self.data
        model = build_model(settings, data.num_classes, data.shape, int(self.run.info["seed"]))
        if settings.weights == PRETRAINED:
            path = self.run.directory / f"pretrained-{settings.model}.safetensors"
            start_from(model, load_weights(path), PRETRAINED)
        layers, back = Cutter(model).cut(settings.cut)
        shape = activation_shape(layers, data.shape)
        front = Front(layers, shields.build(self.shield, shape, settings.batch_size))
        front.requires_grad_(settings.front != "frozen")
        return self.device.move_model(front), self.device.move_model(back)  # type: ignore[return-value]

    @torch.no_grad()
    def _settle(self, front: Front, back: nn.Module, images: ImageSet) -> Classifier:
        """Let the shield learn its running statistics, and return the model as it is applied."""
        front.eval()
        if any(True for _ in front.shield.buffers()):
            front.shield.train()
            size = min(self.settings.batch_size, len(images))
            for number in range(SETTLING):
                places = (np.arange(size) + number * size) % len(images)
                x = self.device.move_batch(images.batch(places)[0])
                protect_without_noise(front.shield, self.device.forward(front, x))
        return WholeModel(front, back).eval()


class _Training:
    """One shadow model's training."""

    def __init__(self, recipe: SplitRecipe, front: Front, back: nn.Module, seed: int) -> None:
        self.recipe, self.front, self.back, self.seed = recipe, front, back, seed
        self.settings, self.device = recipe.settings, recipe.device
        self._learns = self.settings.front != "frozen"
        self.front.layers.train(self._learns)
        self.front.shield.train()
        self._draws = has_random_layers(front)
        self._noise = numpy_generator(seed, "noise")
        self._optimizing = self.settings.front_optimizer or self.settings.optimizer
        self._optimizer = optimizers.build(self._optimizing, front.parameters())
        self._cloud = Cloud(back, self.settings, self.device, derive(seed, "back"), self._learns)

    def train(self, images: ImageSet) -> None:
        """Train all epochs, with new releases in each."""
        size = self._devices(images) * self.settings.batch_size
        for epoch in range(self.settings.epochs):
            self._begin_epoch(epoch)
            for step, chosen in enumerate(self._draw_batches(len(images), size, epoch)):
                x, labels = images.batch(chosen)
                sent = self._release(x, epoch, step)
                arrived = sent.detach()
                self._cloud.step(arrived, labels, epoch, step)
                if self._optimizer is not None and arrived.grad is not None:
                    self._optimizer.zero_grad()
                    self._backward(x, sent, arrived.grad)
                    self._optimizer.step()

    def _backward(self, x: torch.Tensor, sent: torch.Tensor, gradient: torch.Tensor) -> None:
        """Let the front learn from what came back, and from the shield's penalty."""
        penalty = None
        if self.front.shield.has_penalty():
            # Anew: the shield keeps no graph of what it was given.
            x = self.device.move_batch(x)
            penalty = self.front.shield.penalty(x, self.device.forward(self.front, x))
        ends = [sent] if penalty is None else [sent, penalty]
        torch.autograd.backward(ends, [gradient, None][: len(ends)])

    @torch.no_grad()
    def train_once(self, images: ImageSet) -> None:
        """Release each image once, and fit the back to that."""
        batches = list(self._draw_batches(len(images), self.settings.batch_size, 0))
        found = [images.batch(chosen) for chosen in batches]
        smashed = torch.cat([self._release(x, 0, step) for step, (x, _) in enumerate(found)])
        labels = torch.cat([each for _, each in found])
        if self.settings.fit == "means":
            fit_means(self.back, smashed, labels.to(smashed.device))
            return
        with torch.enable_grad():
            for epoch in range(self.settings.epochs):
                self._begin_epoch(epoch)
                steps = self._draw_batches(len(labels), self.settings.batch_size, epoch)
                for step, chosen in enumerate(steps):
                    self._cloud.step(smashed[chosen], labels[chosen], epoch, step)

    def _devices(self, images: ImageSet) -> int:
        """Return how many devices' share the images are, of those that take part in a step."""
        if self.settings.front == "handoff":
            return 1
        share = len(images) / len(self.recipe.data.train)
        return max(1, round(self.settings.devices * min(1.0, share)))

    def _begin_epoch(self, epoch: int) -> None:
        self._cloud.begin_epoch(epoch)
        if self._optimizer is not None:
            optimizers.begin_epoch(self._optimizer, self._optimizing, epoch)

    def _draw_batches(self, count: int, size: int, epoch: int) -> Iterator[np.ndarray]:
        order = numpy_generator(self.seed, "order", epoch).permutation(count)
        ends = np.cumsum(protocol.batch_sizes(count, size))
        yield from np.split(order, ends[:-1])

    def _release(self, x: torch.Tensor, epoch: int, step: int) -> torch.Tensor:
        """Return what the devices would send of some images, each with a batch of its own."""
        parts = np.array_split(np.arange(len(x)), -(-len(x) // self.settings.batch_size))
        with (
            torch.set_grad_enabled(self._learns),
            seed_random_layers(self._draws, self.seed, epoch, step),
        ):
            return torch.cat([self._protect(x[part]) for part in parts])

    def _protect(self, x: torch.Tensor) -> torch.Tensor:
        activations = self.device.forward(self.front, self.device.move_batch(x))
        return self.front.shield.protect(activations, self._noise)[0]
