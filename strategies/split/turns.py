"""Who is asked for which batches of an epoch, and in which exchanges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pudica.models.randomness import numpy_generator
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.fronts import Fronts

# Turns are numbered through the epochs; the odd number after one is for what flushes it.
EPOCH = 2_000_000
# What was released once is not released again, so nobody goes back.
NEVER_BACK = 10**15


@dataclass(frozen=True)
class Exchange:
    """One exchange of a turn, in which some devices are asked for batches of an epoch.

    Attributes
    ----------
    kind : str
        Of its messages.
    turn, epoch, step : int
        The turn's number, and its first batch.
    names : list of str
        Who is asked for batches in this turn.
    closes : bool
        Whether the turn is over with it.
    """

    kind: str
    turn: int
    epoch: int
    step: int
    names: list[str]
    closes: bool


def list_exchanges(
    settings: SplitConfig,
    fronts: Fronts,
    batches: Mapping[str, int],
    names: Sequence[str],
    epoch: int,
) -> Iterator[Exchange]:
    """Yield the exchanges of an epoch: with everybody at once, or one device after the other.

    Parameters
    ----------
    batches : mapping of str to int
        Of each device.
    names : sequence of str
        Who takes part.
    """
    groups = [[name] for name in names] if settings.front == "handoff" else [list(names)]
    turn = epoch * EPOCH
    for group in groups:
        longest = max((batches[name] for name in group), default=0)
        for step in range(0, longest, settings.batches_per_message):
            present = [name for name in group if step < batches[name]]
            kinds = fronts.list_kinds(step)
            for kind in kinds:
                yield Exchange(kind, turn, epoch, step, present, kind == kinds[-1])
            turn += 2


def choose_present(names: Sequence[str], dropouts: int, seed: int, epoch: int) -> list[str]:
    """Return who takes part in an epoch: all but some chosen at random."""
    if not dropouts:
        return list(names)
    randomness = numpy_generator(seed, "dropouts", epoch)
    count = max(0, min(dropouts, len(names) - 1))
    missing = set(randomness.choice(sorted(names), count, replace=False))
    return [name for name in names if name not in missing]
