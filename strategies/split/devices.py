"""The devices of one training across a cut: what they hold, and what is sent to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.protocol import batch_sizes
from pudica.clients.shields.grid import LARGEST_INTEGER, IntegerGrid
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import MOST_CLASSES, Member
from pudica.strategies.core.recorder import MemoryRecorder
from pudica.strategies.core.session import CLOUD
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.costs import Costs

# Of float16, half of what it can hold: gradients are scaled up to it.
ROOM = 2.0**14
MOST_STEP = 1e9
Words = Mapping[str, protocol.Scalar]


@dataclass(frozen=True)
class EdgeMember(Member):
    """What a device says of its data, and of what comes from it.

    Attributes
    ----------
    grid : IntegerGrid or None
        Of which its activations are whole steps, if its shield releases integers.
    evaluates : bool
        Whether it can measure the whole model.
    lasts : bool
        Whether its process lives as long as the run. Elsewhere each message may reach a fresh
        one, and what it has to remember must be kept after each.
    begun : bool
        Whether it has a front of this run.
    said : int
        How many classes it says there are, 0 if it does not know; ``classes`` is how many the
        model tells apart, and 0 until it was tried.
    """

    grid: IntegerGrid | None = None
    evaluates: bool = True
    lasts: bool = True
    begun: bool = True
    said: int = 0

    @classmethod
    def of(cls, member: Member, grid: IntegerGrid | None, lasts: bool) -> Self:
        """Return a device of an experiment, whose shield the cloud knows."""
        values = {name: getattr(member, name) for name in Member.__dataclass_fields__}
        return cls(**values, grid=grid, lasts=lasts)

    @classmethod
    def read(cls, words: Words) -> Self:
        """Return what a device of somebody's own app said as it joined.

        Raises
        ------
        KeyError, ValueError
            If it makes no sense.
        """
        # One without layers behind the cut may not know how many classes there are.
        said = protocol.whole(words, "classes", 0, MOST_CLASSES)
        return replace(
            super().read({**words, "classes": said or MOST_CLASSES}),
            classes=0,
            said=said,
            grid=_read_grid(words),
            evaluates=_read_flag(words, "evaluates"),
            lasts=_read_flag(words, "lasts"),
            begun=_read_flag(words, "begun"),
        )


def _read_flag(words: Words, name: str) -> bool:
    return bool(protocol.whole(words, name, 0, 1))


def _read_grid(words: Words) -> IntegerGrid | None:
    """Return the grid that a device speaks of; to read values its step and type are enough."""
    if "step" not in words:
        return None
    step, kind = words["step"], protocol.text(words, "integers")
    if not isinstance(step, float) or not 0 < step < MOST_STEP or kind not in LARGEST_INTEGER:
        raise ValueError(f"activations in steps of {step!r}, as {kind!r}")
    return IntegerGrid(step, 1, 0.0, kind)  # type: ignore[arg-type]


class Devices:
    """The devices of one training.

    Parameters
    ----------
    cohort : Cohort
    members : mapping of str to EdgeMember
        By name. Who is away stays in it.
    case : str
        Of an experiment.
    settings : SplitConfig

    Attributes
    ----------
    fresh : bool
        Whether each message may reach a new process of its device.
    needed : int
        The turn of the last checkpoint, to which a killed run goes back.
    """

    def __init__(
        self,
        cohort: Cohort,
        members: Mapping[str, EdgeMember],
        case: str,
        settings: SplitConfig,
    ) -> None:
        self.cohort = cohort
        self.members = members
        self.case = case
        self.settings = settings
        self.fresh = not all(member.lasts for member in members.values())
        self.costs = Costs(cohort)
        self.needed = -1

    @property
    def recorder(self) -> MemoryRecorder:
        """Where measurements go."""
        return self.cohort.recorder

    def request(self, config: Words, **arrays: Array) -> RecordDict:
        """Return a request of this case."""
        own = {"run": self.recorder.name, "case": self.case}
        return protocol.request({**own, **config}, **arrays)

    def gradient(
        self, gradient: torch.Tensor, turn: int
    ) -> tuple[dict[str, protocol.Scalar], dict[str, Array]]:
        """Return config and array of a gradient at the cut, of what was sent in a turn.

        For float16 it is scaled by a power of two, since most of it would be too small.
        """
        scale, wire = 1.0, self.settings.wire
        if wire == "float16" and (largest := float(gradient.abs().max())) > 0:
            scale = 2.0 ** math.floor(math.log2(ROOM / largest))
            gradient = gradient * scale
        values = protocol.on_wire(gradient, wire)
        return {"scale": scale, "of": turn}, {"gradient": Array(values)}

    def reporting(self) -> list[str]:
        """Return who is there and says how often models are right."""
        return [name for name in self.cohort.nodes if self.members[name].reports]

    def sizes(self, name: str, step: int, count: int) -> list[int]:
        """Return the sizes of a device's batches, of those that it has."""
        every = batch_sizes(self.members[name].train, self.settings.batch_size)
        return every[step : step + count]

    def batches(self, name: str) -> int:
        """Return how many batches of a device make an epoch."""
        return len(batch_sizes(self.members[name].train, self.settings.batch_size))

    def send_and_receive(
        self, kind: str, requests: Mapping[str, RecordDict], read: Callable[[str, RecordDict], Any]
    ) -> dict[str, Any]:
        """Make an exchange of its own, between those of a turn; see :class:`.Cohort`."""
        return self.cohort.send_and_receive(kind, requests, read)

    def log(
        self,
        stage: str,
        metric: str,
        value: float,
        node: str = CLOUD,
        round: int = 0,  # noqa: A002
        **tags: str | int,
    ) -> None:
        """Append a measurement of this case."""
        self.recorder.log(stage, metric, value, node=node, round=round, case=self.case, **tags)
