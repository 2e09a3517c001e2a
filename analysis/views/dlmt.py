"""What the cloud of DLMT gets of training images: each once, disguised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pudica.analysis.runs import Run
from pudica.analysis.views.gradients import GradientTarget
from pudica.analysis.views.models import ModelTarget, NoModel, dlmt_model_target
from pudica.analysis.views.observers import ImagesObserver
from pudica.analysis.views.releases import (
    Note,
    NothingCrossed,
    Release,
    ReleasesView,
    Target,
)
from pudica.analysis.views.updates import UpdatesObserver
from pudica.clients import protocol
from pudica.clients.assignments import OwnerAssignment
from pudica.clients.data import ImageSet
from pudica.clients.data.images import Positions
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness
from pudica.strategies.core.wire_log import Exchanged
from pudica.strategies.dlmt.config import OWN_KEYS, DlmtConfig

Targets = tuple[Target | GradientTarget | ModelTarget | NoModel, ...]


def targets(run: Run) -> dict[str, Callable[..., Targets]]:
    """Return what opens each case; see :class:`pudica.clients.runtime.systems.System`."""
    return dict.fromkeys(run.section("dlmt", DlmtConfig).each_case(), observe)


def observe(run: Run, case: str, images: int, seed: int, replay: Callable[[Note], None]) -> Targets:
    """Return what can be attacked of a case, which is run again, and its model.

    Of images that are sent, the releases of at most ``images``; else updates of models.

    Raises
    ------
    RequestError
        The images were disguised before the run: what they were like nobody here knows.
    """
    settings, name = run.section("dlmt", DlmtConfig).each_case()[case], f"{run.name}: case '{case}'"
    federated = settings.train == "federated"
    observer: DlmtObserver | UpdatesObserver = (
        UpdatesObserver(name, case) if federated else DlmtObserver(name, case, images, seed)
    )
    replay(observer.note)
    return observer.target(), dlmt_model_target(run, case, images, seed)


@dataclass(frozen=True)
class DisguisedView(ReleasesView):
    """Disguised images, scaled so that 0 and 1 are the ends of what values they can have.

    Attributes
    ----------
    disguise : str or None
        Its notation, which is public. The key is not.
    received : ndarray of shape (n, C, H, W)
        The disguised images as they crossed, whole numbers.
    keys : int64 ndarray of shape (n,)
        Which images are under the same key, as public settings say.
    """

    disguise: str | None
    received: NDArray[np.generic]
    keys: np.ndarray

    @property
    def is_keyed(self) -> bool:
        """Whether there is a disguise."""
        return self.noisy and self.disguise is not None

    def compute(
        self,
        images: ImageSet,
        positions: Positions,
        seed: int,  # noqa: ARG002
        node: int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return images as they are; see :meth:`ReleasesView.compute`."""
        return images.pixels(positions)[:, None].expand(-1, self.releases, -1, -1, -1)

    def protect(self, values: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        """Return images disguised under a key that is drawn anew: nobody else has the owner's."""
        if self.disguise is None or not self.noisy:
            return values
        pixels = (values * 255).round().to(torch.uint8).flatten(0, 1)
        by = KeyedDisguise(Key.new(self.disguise, tuple(pixels.shape[1:]), randomness))  # type: ignore[arg-type]
        low, high = by.span.low, by.span.high
        scaled = by.protect(pixels).double().sub_(low).div_(high - low).float()
        return scaled.reshape(values.shape)

    def function_of(self, node: int) -> Release:
        """Return images as they are; see :meth:`ReleasesView.function_of`."""
        if self.is_keyed:
            return super().function_of(node)
        return lambda images: images[:, None].expand(-1, self.releases, -1, -1, -1)


class DlmtObserver(ImagesObserver[OwnerAssignment]):
    """Collects what crossed of some training images while a case runs."""

    def __init__(self, name: str, case: str, count: int, seed: int) -> None:
        super().__init__(name, case, count, seed)
        self._seen: dict[int, NDArray[np.generic]] = {}

    def _note(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        if exchanged.kind != protocol.IMAGES:
            return
        owner, first = self._assignments[exchanged.node].partition, int(words["start"])
        slots = self._slots[owner][first : first + int(words["count"])]
        images = protocol.arrays_of(exchanged.reply)["images"]
        for row in np.flatnonzero(slots >= 0):
            self._seen[int(slots[row])] = images[row].copy()

    def target(self) -> Target:
        """Return what was collected; errors as of :func:`observe`."""
        if self._data.train.stored.kind != "pixels":
            raise RequestError(
                f"{self.name}: its images were disguised beforehand, and nobody here has them plain"
            )
        slots = sorted(self._seen)
        if not slots:
            raise NothingCrossed(f"{self.name}: no image crossed: nothing to attack")
        nodes, images = self._find_images(slots)
        received = np.stack([self._seen[slot] for slot in slots])
        view = DisguisedView(
            name=self.name,
            seen=self._scale(received)[:, None],
            nodes=nodes,
            own=self._data.test,
            device=self._compute,
            disguise=self._any.shield,
            received=received,
            keys=nodes if self._any.key == OWN_KEYS else np.zeros_like(nodes),
        )
        return Target(view, images)

    def _scale(self, received: NDArray[np.generic]) -> torch.Tensor:
        if self._any.shield is None:
            return torch.from_numpy(received).float() / 255
        span = KeyedDisguise(self._assumed_key()).span
        values = torch.from_numpy(received).double()
        return values.sub_(span.low).div_(span.high - span.low).float()

    def _assumed_key(self) -> Key:
        """Return some key of the disguise: all have the same range of values."""
        assert self._any.shield is not None
        return Key.from_seed(self._any.shield, self._data.shape, self._seed)
