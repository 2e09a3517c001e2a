"""Who watches the messages of a case, and notes what crosses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from pudica.analysis.views.releases import choose_slots
from pudica.clients import protocol
from pudica.clients.assignments import EdgeAssignment, OwnerAssignment, parse_assignment
from pudica.clients.data import ImageSet, Splits, load_once
from pudica.clients.shields.front import Front
from pudica.clients.split.assigned import build_front
from pudica.clients.split.training import draw_order
from pudica.models.compute import Compute
from pudica.strategies.core.wire_log import Exchanged

Own = TypeVar("Own", EdgeAssignment, OwnerAssignment)


class CaseObserver(ABC, Generic[Own]):
    """Watches the messages of one case; subclasses say what they keep.

    Parameters
    ----------
    name : str
        Of run and case.
    case : str
    """

    def __init__(self, name: str, case: str) -> None:
        self.name, self.case = name, case
        self._assignments: dict[int, Own] = {}

    @cached_property
    def _any(self) -> Own:
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
    def _compute(self) -> Compute:
        return Compute(self._any.compute)

    def note(self, exchanged: Exchanged) -> None:
        """Take note of a request and its reply."""
        words = protocol.words_of(exchanged.request)
        if exchanged.kind == protocol.JOIN:
            assignment: Any = parse_assignment(str(words["assignment"]))
            if assignment.case == self.case:
                self._assignments[exchanged.node] = assignment
        elif words.get("case") == self.case:
            self._note(exchanged, words)

    @abstractmethod
    def _note(self, exchanged: Exchanged, words: Mapping[str, protocol.Scalar]) -> None:
        """Take note of a message of the case."""


class ImagesObserver(CaseObserver[Own]):
    """Watches what crosses of some training images; subclasses say what they keep.

    Parameters
    ----------
    name : str
        Of run and case.
    case : str
    count : int
        How many images are attacked at most; drawn from all nodes'.
    seed : int
    """

    def __init__(self, name: str, case: str, count: int, seed: int) -> None:
        super().__init__(name, case)
        self._count, self._seed = count, seed

    @cached_property
    def _slots(self) -> list[np.ndarray]:
        """For each image of each node, its number among those that are attacked, or -1."""
        return choose_slots([len(share) for share in self._shares], self._count, self._seed)

    def _find_images(self, slots: Sequence[int]) -> tuple[np.ndarray, ImageSet]:
        """Return of attacked images, by their numbers, whose they are, and the images."""
        order = np.argsort(every := np.concatenate(self._slots))
        places = order[np.searchsorted(every, slots, sorter=order)]
        nodes = np.repeat(np.arange(len(self._shares)), [len(share) for share in self._shares])
        whole = replace(
            self._shares[0],
            rows=np.concatenate([share.rows for share in self._shares]),
            labels=np.concatenate([share.labels for share in self._shares]),
            attributes=np.concatenate([share.attributes for share in self._shares]),
        )
        return nodes[places], whole.subset(places)


class DeviceObserver(CaseObserver[EdgeAssignment]):
    """Watches the messages of a case of split learning."""

    def _make_front(self) -> Front:
        """Return a device's layers and shield as they train, with any weights."""
        front = build_front(self._any, self._data)
        front.layers.train(self._any.fronts != "frozen")
        front.shield.train()
        self._compute.move_model(front)
        return front

    def _sizes(self, a: EdgeAssignment, words: Mapping[str, protocol.Scalar]) -> list[int]:
        """Return the sizes of the batches that a request asks a device for."""
        first, count = int(words["step"]), int(words["count"])
        every = protocol.batch_sizes(len(self._shares[a.partition]), a.batch_size)
        return every[first : first + count]

    def _positions(self, a: EdgeAssignment, words: Mapping[str, protocol.Scalar]) -> np.ndarray:
        """Return which of a device's images it is asked for, in their order."""
        count, first = len(self._shares[a.partition]), int(words["step"])
        ends = np.cumsum([0, *protocol.batch_sizes(count, a.batch_size)])
        rows = slice(ends[first], ends[first + int(words["count"])])
        return draw_order(a.seed, a.partition, int(words["epoch"]), count)[rows]
