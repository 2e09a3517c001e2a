"""How often a device has released its examples, and how often it may."""

from __future__ import annotations

import hashlib
import json

import torch

from clients.vault import Vault


class BudgetExhausted(RuntimeError):
    """An example was to be released more often than its budget allows."""


class Budget:
    """A count of releases, written down before anything leaves.

    An epoch releases each example once. Asked again for batches of an epoch that is counted,
    as after a kill, a device with a fixed front and noise that it can repeat says the same
    again, which tells nobody anything new.

    Parameters
    ----------
    vault : Vault
    case : str
        Of the experiment; each has a count of its own.
    limit : int or None
        None: nothing is counted.
    """

    def __init__(self, vault: Vault, case: str, limit: int | None) -> None:
        self.vault = vault
        self.limit = limit
        self._name = f"{case}-releases.json"

    def spend(self, epoch: int) -> None:
        """Count the release of an epoch.

        Raises
        ------
        BudgetExhausted
            If it would be one too many; nothing was counted.
        """
        if self.limit is None:
            return
        kept = self._kept()
        if epoch in kept["epochs"]:
            return
        if len(kept["epochs"]) >= self.limit:
            raise BudgetExhausted(
                f"the budget is exhausted: every example was released {self.limit} times, "
                "and may not be again"
            )
        self._write({**kept, "epochs": [*kept["epochs"], epoch]})

    def front_is(self, values: torch.Tensor) -> None:
        """Note the front that releases are computed with.

        Raises
        ------
        BudgetExhausted
            If there were releases with another one: each would have to be counted anew.
        """
        if self.limit is None:
            return
        digest = hashlib.blake2b(values.cpu().numpy().tobytes(), digest_size=16).hexdigest()
        kept = self._kept()
        if kept["epochs"] and kept["front"] != digest:
            raise BudgetExhausted("examples were released already, with another front")
        self._write({**kept, "front": digest})

    def _kept(self) -> dict:
        kept = self.vault.read(self._name)
        return json.loads(kept) if kept else {"epochs": [], "front": ""}

    def _write(self, kept: dict) -> None:
        self.vault.write(self._name, json.dumps(kept).encode())
