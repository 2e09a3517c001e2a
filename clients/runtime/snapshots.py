"""What a device would need to go on from an earlier turn, in its vault."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from pudica.clients.runtime.vault import AnyVault


class Snapshots:
    """The snapshots of one case.

    ``of`` is the fingerprint of its settings: another run of the same name may have left some.
    """

    def __init__(self, vault: AnyVault, case: str, of: str) -> None:
        self.vault = vault
        self.of = of
        self._stem = f"{case}-turn-"
        self._pattern = re.compile(re.escape(self._stem) + r"(\d+)")

    def newest(self, before: float = math.inf) -> int:
        """Return the newest turn before another, -1 if there is none."""
        return max((kept for kept in self._turns() if kept < before), default=-1)

    def keep(
        self, turn: int, needed: int, tensors: dict[str, torch.Tensor], note: Mapping[str, Any]
    ) -> None:
        """Keep a snapshot, and drop those that nobody can go back to.

        Parameters
        ----------
        turn : int
            After which this is.
        needed : int
            The turn of the cloud's last checkpoint, to which a killed run would go back.
        """
        self.vault.save(self._name(turn), tensors, {"of": self.of, **note})
        # A turn whose answer is lost with the device's process is asked for again.
        back = {self.newest(needed + 1), self.newest(turn)}
        for kept in self._turns():
            if kept < turn and kept not in back:
                self.vault.drop(self._name(kept))

    def load(self, turn: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and note of a turn, or None if it is not of these settings."""
        kept = self.vault.load(self._name(turn))
        return kept if kept and kept[1]["of"] == self.of else None

    def drop_after(self, turn: int) -> None:
        """Drop what is newer than a turn: a run goes back to it."""
        for kept in self._turns():
            if kept > turn:
                self.vault.drop(self._name(kept))

    def _name(self, turn: int) -> str:
        return f"{self._stem}{turn:09d}"

    def _turns(self) -> list[int]:
        found = map(self._pattern.fullmatch, self.vault.saved())
        return sorted(int(match[1]) for match in found if match)
