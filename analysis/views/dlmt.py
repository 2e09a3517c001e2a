"""What the cloud of DLMT gets of training images: each once, disguised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pudica.analysis.runs import Run
from pudica.analysis.views.releases import (
    Note,
    Release,
    ReleasesView,
    Target,
    choose_slots,
)
from pudica.clients import protocol
from pudica.clients.assignments import OwnerAssignment, parse_assignment
from pudica.clients.data import ImageSet, Splits, load_once
from pudica.clients.data.images import Positions
from pudica.clients.shields.disguises import Key, KeyedDisguise
from pudica.models.compute import Compute
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness
from pudica.strategies.core.wire_log import Exchanged
from pudica.strategies.dlmt.config import DlmtConfig


def targets(run: Run) -> dict[str, Callable[..., tuple[Target, ...]]]:
    """Return what opens each case in which owners send their images; see :class:`.System`."""
    cases = run.section("dlmt", DlmtConfig).each_case().items()
    return {case: observe for case, settings in cases if settings.train == "central"}


def observe(
    run: Run, case: str, images: int, seed: int, replay: Callable[[Note], None]
) -> tuple[Target, ...]:
    """Return the releases of at most ``images`` training images in a case, which is run again.

    Raises
    ------
    RequestError
        The images were disguised before the run: what they were like nobody here knows.
    """
    observer = DlmtObserver(f"{run.name}: case '{case}'", case, images, seed)
    replay(observer.note)
    return (observer.target(),)


@dataclass(frozen=True)
class DisguisedView(ReleasesView):
    """Disguised images, scaled so that 0 and 1 are the ends of what values they can have.

    Attributes
    ----------
    disguise : str or None
        Its notation, which is public. The key is not.
    received : ndarray of shape (n, C, H, W)
        The disguised images as they crossed, whole numbers.
    """

    disguise: str | None
    received: NDArray[np.generic]

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


class DlmtObserver:
    """Collects what crossed of some training images while a case runs.

    Parameters
    ----------
    name : str
        Of run and case.
    case : str
    count : int
        How many images are attacked at most; drawn from all owners'.
    seed : int
    """

    def __init__(self, name: str, case: str, count: int, seed: int) -> None:
        self.name, self.case = name, case
        self._count, self._seed = count, seed
        self._assignments: dict[int, OwnerAssignment] = {}
        self._seen: dict[int, tuple[int, NDArray[np.generic]]] = {}

    @cached_property
    def _any(self) -> OwnerAssignment:
        return next(iter(self._assignments.values()))

    @cached_property
    def _data(self) -> Splits:
        return load_once(self._any.data.model_dump_json(), self._any.data_seed)

    @cached_property
    def _shares(self) -> list[ImageSet]:
        each = range(self._any.partitions)
        places = [self._any.model_copy(update={"partition": number}) for number in each]
        return [place.share(self._data, "train") for place in places]

    @cached_property
    def _slots(self) -> list[np.ndarray]:
        return choose_slots([len(share) for share in self._shares], self._count, self._seed)

    def note(self, exchanged: Exchanged) -> None:
        """Take note of a request and its reply."""
        words = protocol.words_of(exchanged.request)
        if exchanged.kind == protocol.JOIN:
            assignment = parse_assignment(str(words["assignment"]))
            if assignment.case == self.case:
                self._assignments[exchanged.node] = assignment
        elif exchanged.kind == protocol.IMAGES and words.get("case") == self.case:
            owner = self._assignments[exchanged.node].partition
            first = int(words["start"])
            slots = self._slots[owner][first : first + int(words["count"])]
            images = protocol.arrays_of(exchanged.reply)["images"]
            for row in np.flatnonzero(slots >= 0):
                self._seen[int(slots[row])] = owner, images[row].copy()

    def target(self) -> Target:
        """Return what was collected; errors as of :func:`observe`."""
        if self._data.train.stored.kind != "pixels":
            raise RequestError(
                f"{self.name}: its images were disguised beforehand, and nobody here has them plain"
            )
        slots = sorted(self._seen)
        if not slots:
            raise RequestError(f"{self.name}: no image crossed: nothing to attack")
        whole = concatenate_shares(self._shares)
        order = np.argsort(every := np.concatenate(self._slots))
        places = order[np.searchsorted(every, slots, sorter=order)]
        received = np.stack([self._seen[slot][1] for slot in slots])
        view = DisguisedView(
            name=self.name,
            seen=self._scale(received)[:, None],
            nodes=np.array([self._seen[slot][0] for slot in slots]),
            own=self._data.test,
            device=Compute(self._any.compute),
            disguise=self._any.shield,
            received=received,
        )
        return Target(view, whole.subset(places))

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


def concatenate_shares(shares: list[ImageSet]) -> ImageSet:
    """Return the shares of all nodes as one set, in their order."""
    return replace(
        shares[0],
        rows=np.concatenate([share.rows for share in shares]),
        labels=np.concatenate([share.labels for share in shares]),
        attributes=np.concatenate([share.attributes for share in shares]),
    )
