"""What the cloud of split learning gets of training images: their releases in every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch

from pudica.analysis.runs import Run
from pudica.analysis.views.active import ActiveTarget, to_values
from pudica.analysis.views.fronts import FrontsObserver
from pudica.analysis.views.gradients import GradientTarget
from pudica.analysis.views.models import ModelTarget, NoModel
from pudica.analysis.views.observers import DeviceObserver, ImagesObserver
from pudica.analysis.views.releases import (
    Note,
    NothingCrossed,
    Release,
    ReleasesView,
    Target,
)
from pudica.analysis.views.shielded import ShieldTarget, expected
from pudica.analysis.views.split_models import split_model_target
from pudica.clients import protocol
from pudica.clients.assignments import EdgeAssignment
from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.clients.shields import protect_without_noise
from pudica.clients.shields.front import Front
from pudica.models import packing
from pudica.models.randomness import Randomness, derive, numpy_generator, temporary_seed
from pudica.strategies.core.wire_log import Exchanged
from pudica.strategies.split.config import SplitConfig

Targets = tuple[Target | GradientTarget | ModelTarget | NoModel | ActiveTarget | ShieldTarget, ...]
KnownFronts = Mapping[tuple[int, int], Sequence[np.ndarray]]
"""By device and epoch, fronts that the cloud has had in its hands, packed: first and last."""


def targets(run: Run) -> dict[str, Callable[..., Targets]]:
    """Return what opens each case; see :class:`pudica.clients.runtime.systems.System`."""
    return dict.fromkeys(run.section("split", SplitConfig).each_case(), observe)


def observe(
    run: Run,
    case: str,
    images: int,
    seed: int,
    replay: Callable[[Note], None],
) -> Targets:
    """Return what can be attacked of a case, which is run again.

    The releases of training images; the first gradients of fronts that are averaged; the trained
    model; a device; the shield.

    Parameters
    ----------
    images : int
        Images of each kind, at most.

    Raises
    ------
    RequestError
        As of ``replay``.
    """
    name = f"{run.name}: case '{case}'"
    releases, fronts = SplitObserver(name, case, images, seed), FrontsObserver(name, case)

    def note(exchanged: Exchanged) -> None:
        releases.note(exchanged)
        fronts.note(exchanged)

    replay(note)
    gradients = [fronts.target()] if fronts.gradients else []
    model = split_model_target(run, case, images, seed)
    seen = [releases.target()] if releases.has_images else []
    return *seen, *gradients, model, releases.active_target(), releases.shield_target()


@dataclass(frozen=True)
class SplitView(ReleasesView):
    """The releases of split learning; see :class:`ReleasesView`.

    Attributes
    ----------
    front : Front
        The devices' layers and shield, which are public.
    fronts : mapping
        Their weights. Of fronts that stay on their devices, those that they began with.
    batch_size : int
        How many images a device's shield sees at once.
    """

    front: Front
    fronts: KnownFronts
    batch_size: int

    @torch.no_grad()
    def compute(
        self, images: ImageSet, positions: Positions, seed: int, node: int | None = None
    ) -> torch.Tensor:
        """Return a front's activations of other images; see :meth:`ReleasesView.compute`."""
        chosen = np.arange(len(images))[positions]
        draws = numpy_generator(seed, "which front")
        devices = sorted({device for device, _ in self.fronts})
        values = torch.empty(len(chosen), self.releases, *self.shape)
        with temporary_seed(derive(seed, "random layers")):
            for part in _batches(len(chosen), self.batch_size):
                x = self.device.move_batch(images.batch(chosen[part])[0])
                who = devices[draws.integers(len(devices))] if node is None else node
                for place, epoch in enumerate(self._epochs(who)):
                    known = self.fronts[who, epoch]
                    self._take(known[int(draws.integers(len(known)))])
                    values[part, place] = self.device.forward(self.front, x).cpu()
        return values

    @torch.no_grad()
    def protect(self, values: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        """Return activations as they would cross; see :meth:`ReleasesView.protect`."""
        crossed, shield = torch.empty_like(values), self.front.shield
        for part in _batches(len(values), self.batch_size):
            for place in range(self.releases):
                x = self.device.move_batch(values[part, place])
                noisy, clear = partial(shield.protect, x, randomness), protect_without_noise
                crossed[part, place] = (noisy()[0] if self.noisy else clear(shield, x)).cpu()
        return crossed

    def function_of(self, node: int) -> Release:
        """Return a device's activations by its last front of each epoch, as the shield bounds them.

        See :meth:`ReleasesView.function_of`. A shield that normalises by the batch does so by the
        images that it is given.
        """
        mean, std = (self.device.move_batch(each) for each in (self.own.mean, self.own.std))
        fronts = []
        for epoch in self._epochs(node):
            self._take(self.fronts[node, epoch][-1])
            fronts.append(copy.deepcopy(self.front))

        def release(images: torch.Tensor) -> torch.Tensor:
            each = [self._activate(front, (images - mean) / std) for front in fronts]
            return torch.stack(each, 1)

        return release

    def _activate(self, front: Front, x: torch.Tensor) -> torch.Tensor:
        parts = self.device.forward(front, x).split(self.batch_size)
        return torch.cat([expected(front.shield, part) for part in parts])

    def _epochs(self, device: int) -> list[int]:
        return sorted(epoch for own, epoch in self.fronts if own == device)[-self.releases :]

    def _take(self, packed: np.ndarray) -> None:
        values = torch.from_numpy(packed).to(self.device.device)
        packing.unpack(values, packing.state_tensors(self.front))


class SplitObserver(ImagesObserver[EdgeAssignment], DeviceObserver):
    """Collects what crossed of some training images while a case runs."""

    def __init__(self, name: str, case: str, count: int, seed: int) -> None:
        super().__init__(name, case, count, seed)
        self._current: dict[int, np.ndarray] = {}
        self._fronts: dict[tuple[int, int], list[np.ndarray]] = {}
        self._seen: dict[int, dict[int, torch.Tensor]] = {}

    @cached_property
    def _front(self) -> Front:
        return self._make_front().requires_grad_(False)

    # ---------------------------------------------------------------------- what crosses

    def _note(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        if exchanged.kind == protocol.SMASH and words["count"]:
            self._note_batches(exchanged, words)
        elif exchanged.kind == protocol.FRONT:
            self._note_front(exchanged.node, protocol.arrays_of(exchanged.reply)["front"])

    def _note_front(self, node: int, packed: np.ndarray) -> None:
        """Keep a front that came back, beside the one with which the device began its epoch."""
        device = self._assignments[node].partition
        last = max(epoch for own, epoch in self._fronts if own == device)
        self._fronts[device, last][1:] = [packed]

    def _note_batches(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        a, sent = self._assignments[exchanged.node], protocol.arrays_of(exchanged.request)
        epoch, device = int(words["epoch"]), a.partition
        if "front" in sent:
            self._current[device] = sent["front"]
        known = self._fronts.setdefault((device, epoch), [self._current[device]])
        if known[0] is not self._current[device]:
            known[1:] = [self._current[device]]
        slots = self._slots[device][self._positions(a, words)]
        smashed = protocol.arrays_of(exchanged.reply)["smashed"]
        for row in np.flatnonzero(slots >= 0):
            values = to_values(smashed[row], self._front.shield.grid)
            self._seen.setdefault(epoch, {})[int(slots[row])] = values

    # ---------------------------------------------------------------------------- result

    @property
    def has_images(self) -> bool:
        """Whether some image crossed in every epoch."""
        return bool(self._find_whole())

    def _find_whole(self) -> list[int]:
        """Return the numbers of images that crossed in every epoch."""
        each = self._seen.values()
        return [slot for slot in range(self._count) if each and all(slot in e for e in each)]

    def target(self) -> Target:
        """Return what was collected of the images that crossed in every epoch.

        Raises
        ------
        NothingCrossed
            There is none.
        """
        epochs = sorted(self._seen)
        if not (whole := self._find_whole()):
            raise NothingCrossed(f"{self.name}: no image crossed in every epoch: nothing to attack")
        nodes, images = self._find_images(whole)
        view = SplitView(
            name=self.name,
            seen=torch.stack([torch.stack([self._seen[e][i] for e in epochs]) for i in whole]),
            nodes=nodes,
            own=self._data.test,
            front=self._front,
            # Of devices that took part in every epoch: only their images are there.
            fronts={key: own for key, own in self._fronts.items() if key[0] in nodes},
            batch_size=self._any.batch_size,
            device=self._compute,
        )
        return Target(view, images)

    def active_target(self) -> ActiveTarget:
        """Return the first device of those that joined."""
        first = min(self._assignments.values(), key=lambda each: each.partition)
        return ActiveTarget(self.name, first)

    def shield_target(self) -> ShieldTarget:
        """Return the devices' shield."""
        return ShieldTarget(self.name, self._front.shield)


def _batches(count: int, size: int) -> Iterator[slice]:
    """Yield an epoch's batches as the devices make them."""
    ends = np.cumsum([0, *protocol.batch_sizes(count, size)])
    return (slice(first, last) for first, last in pairwise(map(int, ends)))
