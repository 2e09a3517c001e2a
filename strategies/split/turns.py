"""Who is asked for which batches of an epoch, and in which exchanges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pudica.clients import protocol
from pudica.models.randomness import numpy_generator
from pudica.strategies.split.config import SplitConfig
from pudica.strategies.split.fronts import Fronts

# Turns are numbered through the epochs; the odd number after one is for what flushes it.
EPOCH = 2_000_000
# What was released once is not released again, so nobody goes back.
NEVER_BACK = 10**15


@dataclass(frozen=True)
class Turn:
    """Some batches of an epoch: who is asked for which."""

    number: int
    epoch: int
    step: int
    count: int
    names: list[str]


@dataclass(frozen=True)
class Exchange:
    """One exchange of a turn.

    Attributes
    ----------
    kind : str
        Of its messages.
    turn : Turn
    closes : bool
        Whether the turn is over with it.
    """

    kind: str
    turn: Turn
    closes: bool


def list_turns(
    settings: SplitConfig, batches: Mapping[str, int], names: Sequence[str], epoch: int
) -> Iterator[Turn]:
    """Yield the turns of an epoch: everybody at once, or one device after the other.

    Parameters
    ----------
    batches : mapping of str to int
        Of each device.
    names : sequence of str
        Who takes part.
    """
    each = settings.batches_per_message
    groups = [[name] for name in names] if settings.front == "handoff" else [list(names)]
    index = 0
    for group in groups:
        longest = max((batches[name] for name in group), default=0)
        for step in range(0, longest, each):
            there = [name for name in group if step < batches[name]]
            yield Turn(epoch * EPOCH + 2 * index, epoch, step, each, there)
            index += 1


def list_exchanges(turns: Iterator[Turn], fronts: Fronts) -> Iterator[Exchange]:
    """Yield the exchanges of some turns."""
    for turn in turns:
        if fronts.is_handed_on and turn.step == 0:
            yield Exchange(protocol.FRONT, turn, False)
        yield Exchange(protocol.SMASH, turn, not fronts.returns_gradients)
        if fronts.returns_gradients:
            yield Exchange(protocol.FRONT_GRADIENT, turn, True)


def choose_present(names: Sequence[str], dropouts: int, seed: int, epoch: int) -> list[str]:
    """Return who takes part in an epoch: all but some chosen at random."""
    if not dropouts:
        return list(names)
    randomness = numpy_generator(seed, "dropouts", epoch)
    count = max(0, min(dropouts, len(names) - 1))
    missing = set(randomness.choice(sorted(names), count, replace=False))
    return [name for name in names if name not in missing]
