"""How often a device has released its examples, and how often it may."""

from __future__ import annotations

import json
from typing import Any

from clients.vault import Vault


class BudgetExhausted(RuntimeError):
    """An example was to be released more often than its budget allows."""


class Budget:
    """A count of releases, written down before anything leaves.

    An epoch releases each example once. Asked again for batches of an epoch that is counted,
    as after a kill, a device with the same front draws the same noise and says the same.

    Parameters
    ----------
    vault : Vault
    case : str
        Of the experiment; each has a count of its own.
    limit : int or None
        None: nothing is counted.
    terms : str
        What a release is computed by. Under other terms each would be another release.
    """

    def __init__(self, vault: Vault, case: str, limit: int | None, terms: str) -> None:
        self.vault = vault
        self.limit = limit
        self.terms = terms
        self._name = f"{case}-releases.json"

    def spend(self, epoch: int) -> None:
        """Count the release of an epoch.

        Raises
        ------
        BudgetExhausted
            If it would be one too many, or others were released under other terms; nothing was
            counted.
        """
        kept = self._kept()
        if kept["epochs"] and kept["terms"] != self.terms:
            raise BudgetExhausted(
                "examples were released already with other settings; a budget can't be begun anew"
            )
        if self.limit is None or epoch in kept["epochs"]:
            return
        if len(kept["epochs"]) >= self.limit:
            raise BudgetExhausted(
                f"the budget is exhausted: every example was released {self.limit} times, "
                "and may not be again"
            )
        spent = {"terms": self.terms, "epochs": [*kept["epochs"], epoch]}
        self.vault.write(self._name, json.dumps(spent).encode())

    def _kept(self) -> dict[str, Any]:
        kept = self.vault.read(self._name)
        return json.loads(kept) if kept else {"terms": self.terms, "epochs": []}
