"""Who is asked about which batches of an epoch, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from pudica.models.randomness import numpy_generator
from pudica.strategies.themis.config import ThemisConfig


@dataclass(frozen=True)
class Turn:
    """One exchange: who is asked about which batches."""

    epoch: int
    step: int
    count: int
    names: list[str]

    def among(self, nodes: Collection[str]) -> Turn:
        """Return the turn without those who are not there any more."""
        return replace(self, names=[name for name in self.names if name in nodes])


class Turns:
    """The turns of a training.

    Parameters
    ----------
    settings : ThemisConfig
    seed : int
        The run's.
    case : str
    """

    def __init__(self, settings: ThemisConfig, seed: int, case: str) -> None:
        self.settings = settings
        self.seed = seed
        self.case = case

    def plan(self, epoch: int, names: Sequence[str], batches: int) -> Iterator[Turn]:
        """Yield the exchanges of an epoch of so many batches."""
        present, visit = self.present(epoch, names), self.settings.steps_per_visit
        for step in range(0, batches, visit):
            count = min(visit, batches - step)
            if self.settings.update == "sequential":
                yield from (Turn(epoch, step, count, [name]) for name in present)
            else:
                yield Turn(epoch, step, count, present)

    def present(self, epoch: int, names: Sequence[str]) -> list[str]:
        """Return who takes part in an epoch, in the order of their turns."""
        settings = self.settings
        training = [
            name
            for name in self._order(epoch, list(names))
            if name not in settings.bystanders and settings.late.get(name, 0) <= epoch
        ]
        missing: set[str] = set()
        if settings.dropouts:
            randomness = numpy_generator(self.seed, "dropouts", self.case, epoch)
            count = max(0, min(settings.dropouts, len(training) - 1))
            missing = set(randomness.choice(sorted(training), count, replace=False))
        return [name for name in training if name not in missing]

    def _order(self, epoch: int, names: list[str]) -> list[str]:
        order = self.settings.order
        if isinstance(order, list):
            return [name for name in order if name in names]
        if order == "random":
            randomness = numpy_generator(self.seed, "order", self.case, epoch)
            return [names[i] for i in randomness.permutation(len(names))]
        if order == "listed":
            return names
        return sorted(names, key=str.casefold, reverse=order == "reverse")
