"""What devices pay: bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from flwr.app import RecordDict

from pudica.clients import protocol
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.spreadsheets import write_csv

MOST_SECONDS = 1e9
FORWARD, BACKWARD, SKIPPED = "forward", "backward", "skipped"


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
    said = {*protocol.numbers_of(content), *needed}
    found = {
        name: protocol.number_of(content, name, 0, MOST_SECONDS)
        for name in (FORWARD, BACKWARD)
        if name in said
    }
    if SKIPPED in said:
        found[SKIPPED] = protocol.count_of(content, SKIPPED, 1)
    return found


class Costs:
    """Bytes of an epoch, and seconds of all, of each device.

    Parameters
    ----------
    cohort : Cohort
        Which counts the bytes.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.seconds: dict[str, dict[str, float]] = {}
        self._before: dict[str, list[int]] = {}

    def begin(self) -> None:
        """Start to count the bytes of an epoch."""
        self._before = {name: list(total) for name, total in self.cohort.traffic.items()}

    def bytes(self, name: str) -> tuple[int, int]:
        """Return a device's bytes up and down since the epoch began."""
        before = self._before.get(name, [0, 0])
        down, up = self.cohort.traffic.get(name, [0, 0])
        return up - before[1], down - before[0]

    def add(self, name: str, seconds: Mapping[str, float], batches: int = 0) -> None:
        """Add what a device says it took.

        Parameters
        ----------
        seconds : mapping
            ``forward`` and ``backward``.
        batches : int
            Of the forward pass.
        """
        total = self.seconds.setdefault(name, {"forward": 0.0, "backward": 0.0, "batches": 0})
        for key in (FORWARD, BACKWARD):
            total[key] += seconds.get(key, 0.0)
        total["batches"] += batches

    def write(self, path: Path) -> None:
        """Write each device's milliseconds per batch as CSV."""
        rows = [
            {
                "node": name,
                "batches": int(total["batches"]),
                "forward_ms": 1000 * total["forward"] / total["batches"],
                "backward_ms": 1000 * total["backward"] / total["batches"],
            }
            for name, total in self.seconds.items()
            if total["batches"]
        ]
        write_csv(pd.DataFrame(rows, columns=COLUMNS), path)

    def note(self) -> dict[str, Any]:
        """Return everything that is to be remembered."""
        return {
            "seconds": self.seconds,
            "before": self._before,
            "traffic": self.cohort.traffic,
        }

    def restore(self, note: Mapping[str, Any]) -> None:
        """Put back what :meth:`note` returned."""
        self.seconds, self._before = note["seconds"], note["before"]
        self.cohort.traffic.update({name: list(total) for name, total in note["traffic"].items()})


COLUMNS = ["node", "batches", "forward_ms", "backward_ms"]
