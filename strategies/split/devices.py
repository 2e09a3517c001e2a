"""The devices of one training across a cut: what they hold, what they are sent, what they pay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch
from flwr.app import Array, RecordDict

from pudica.clients import protocol
from pudica.clients.protocol import batch_sizes
from pudica.clients.shields.grid import LARGEST_INTEGER, IntegerGrid
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.members import MOST_CLASSES, Member, Words
from pudica.strategies.core.recorder import MemoryRecorder, Recorder
from pudica.strategies.core.spreadsheets import write_csv
from pudica.strategies.split.config import SplitConfig

# Of float16, half of what it can hold: gradients are scaled up to it.
ROOM = 2.0**14
MOST_STEP = 1e9
MOST_SECONDS = 1e9
BYTES = 4  # of the paper's float32 activations and int32 labels
FORWARD, BACKWARD, SKIPPED = "forward", "backward", "skipped"
Extras = tuple[dict[str, protocol.Scalar], dict[str, Array]]
"""Config and arrays to add to a request."""


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
    known_classes : int
        How many classes it says there are, 0 if it does not know; ``classes`` is how many the
        model tells apart, and 0 until it was tried.
    """

    grid: IntegerGrid | None = None
    evaluates: bool = True
    lasts: bool = True
    begun: bool = True
    known_classes: int = 0

    @classmethod
    def of(cls, member: Member, grid: IntegerGrid | None, lasts: bool) -> Self:
        """Return a device of an experiment, whose shield the cloud knows."""
        return cls(**vars(member), grid=grid, lasts=lasts)

    @classmethod
    def read(cls, words: Words) -> Self:
        """Return what a device of somebody's own app said; errors as of :meth:`.Member.read`."""
        # One without layers behind the cut may not know how many classes there are.
        known = protocol.whole(words, "classes", 0, MOST_CLASSES)
        about = vars(Member.read({**words, "classes": known or MOST_CLASSES}))
        own: dict[str, Any] = {"classes": 0, "known_classes": known, "grid": _read_grid(words)}
        for flag in ("evaluates", "lasts", "begun"):
            own[flag] = bool(protocol.whole(words, flag, 0, 1))
        return cls(**{**about, **own})


def _read_grid(words: Words) -> IntegerGrid | None:
    """Return the grid that a device speaks of; to read values its step and type are enough."""
    if "step" not in words:
        return None
    step, kind = words["step"], protocol.text(words, "integers")
    if not isinstance(step, float) or not 0 < step < MOST_STEP or kind not in LARGEST_INTEGER:
        raise ValueError(f"activations in steps of {step!r}, as {kind!r}")
    return IntegerGrid(step, 1, 0.0, kind)  # type: ignore[arg-type]


def read_seconds(content: RecordDict, *needed: str) -> dict[str, float]:
    """Return what a device says it took, and whether it skipped a gradient.

    Parameters
    ----------
    needed : str
        What it has to say at least.

    Raises
    ------
    KeyError, ValueError
        If it makes no sense.
    """
    stated = {*protocol.numbers_of(content), *needed}
    found = {
        name: protocol.number_of(content, name, 0, MOST_SECONDS)
        for name in (FORWARD, BACKWARD)
        if name in stated
    }
    if SKIPPED in stated:
        found[SKIPPED] = protocol.count_of(content, SKIPPED, 1)
    return found


class Devices:
    """The devices of one training.

    Attributes
    ----------
    members : mapping of str to EdgeMember
        By name. Who is away stays in it.
    fresh : bool
        Whether each message may reach a new process of its device.
    needed : int
        The turn of the last checkpoint, to which a killed run goes back.
    """

    def __init__(
        self, cohort: Cohort, members: Mapping[str, EdgeMember], case: str, settings: SplitConfig
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

    def gradient(self, gradient: torch.Tensor, turn: int) -> Extras:
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

    def sizes(self, name: str, step: int = 0, count: int | None = None) -> list[int]:
        """Return the sizes of so many of a device's batches from a step on; of all that it has."""
        every = batch_sizes(self.members[name].train, self.settings.batch_size)
        return every[step:] if count is None else every[step : step + count]

    def log_bytes(self, shape: tuple[int, ...], epoch: int) -> None:
        """Log each device's bytes in an epoch, as measured and by section V.C of paper 004.

        Up ``4·N·(p·q·m + 1)`` for N examples with their labels; down ``4`` for each step, the
        loss. What really has to come down is the gradient, as large as what went up.

        Parameters
        ----------
        shape : tuple of int
            Of one example's activation.
        """
        for name, device in self.members.items():
            up, down = self.costs.bytes(name)
            rows = {
                "bytes_up": up,
                "bytes_down": down,
                "formula_up": BYTES * device.train * (math.prod(shape) + 1),
                "formula_down": BYTES * len(self.sizes(name)),
            }
            for metric, value in rows.items():
                self.recorder.log("costs", metric, value, node=name, round=epoch, case=self.case)


class Costs:
    """Bytes of an epoch, which the cohort counts, and seconds of all, of each device."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.seconds: dict[str, dict[str, float]] = {}
        self._before: dict[str, list[int]] = {}

    def begin_epoch(self) -> None:
        """Start to count bytes anew."""
        self._before = {name: list(total) for name, total in self.cohort.traffic.items()}

    def bytes(self, name: str) -> tuple[int, int]:
        """Return a device's bytes up and down since the epoch began."""
        before = self._before.get(name, [0, 0])
        down, up = self.cohort.traffic.get(name, [0, 0])
        return up - before[1], down - before[0]

    def add(self, name: str, seconds: Mapping[str, float], batches: int = 0) -> None:
        """Add what a device says it took, as of :func:`read_seconds`, forward for some batches."""
        total = self.seconds.setdefault(name, {FORWARD: 0.0, BACKWARD: 0.0, "batches": 0})
        for key in (FORWARD, BACKWARD):
            total[key] += seconds.get(key, 0.0)
        total["batches"] += batches

    def write(self, case: str) -> None:
        """Write each device's milliseconds per batch as CSV, if the run has a directory."""
        recorder = self.cohort.recorder
        if not isinstance(recorder, Recorder):
            return
        rows = [
            (
                name,
                int(total["batches"]),
                1000 * total[FORWARD] / total["batches"],
                1000 * total[BACKWARD] / total["batches"],
            )
            for name, total in self.seconds.items()
            if total["batches"]
        ]
        columns = ["node", "batches", "forward_ms", "backward_ms"]
        write_csv(pd.DataFrame(rows, columns=columns), recorder.artefact(f"{case}/costs.csv"))

    def note(self) -> dict[str, Any]:
        """Return everything that is to be remembered."""
        traffic = self.cohort.traffic
        return {"seconds": self.seconds, "before": self._before, "traffic": traffic}

    def restore(self, note: Mapping[str, Any]) -> None:
        """Put back what :meth:`note` returned."""
        self.seconds, self._before = note["seconds"], note["before"]
        self.cohort.traffic.update({name: list(total) for name, total in note["traffic"].items()})
