"""How a device releases what it computed from private images: paid for, kept, sent again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pudica.clients.runtime.odometer import Limits, Odometer, Planned
from pudica.clients.runtime.vault import Vault


class Releases:
    """What one device may release in one case, and what it has released.

    Parameters
    ----------
    keeps : bool
        Noise is drawn anew for each release: what left is kept, to be sent again. If not, the
        same is computed from the same.
    """

    def __init__(
        self, vault: Vault, odometer: Odometer, limits: Sequence[Limits], keeps: bool
    ) -> None:
        self._vault = vault
        self._odometer = odometer
        self._limits = limits
        self._keeps = keeps

    def check(self, planned: Sequence[Planned]) -> None:
        """See that all that is planned fits, as :meth:`Odometer.check`."""
        self._odometer.check(planned, self._limits)

    def release(
        self,
        planned: Planned,
        group: str,
        functions: Mapping[str, str],
        draw: Callable[[str], np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Return what leaves from each place of a group.

        First it is paid for, then drawn, kept, and noted; only then may it leave. A kill at any
        point leaves more counted than sent, never less.

        Parameters
        ----------
        group : str
            In which each image is in one place at most.
        functions : mapping of str to str
            By place, the digest of everything that the release is a function of.
        draw : callable
            Computes what leaves from a place.

        Raises
        ------
        BudgetExhausted
            If it is not allowed. Nothing of it may leave.
        """
        found = {place: self._kept(group, function) for place, function in functions.items()}
        self._odometer.reserve(planned, group, self._named(functions, found), self._limits)
        if not self._keeps:
            # What is refused for its values has answered, too.
            self._odometer.settle(group, functions)
        for place, array in found.items():
            if array is None:
                found[place] = drawn = draw(place)
                if self._keeps:
                    file = io.BytesIO()
                    np.save(file, drawn, allow_pickle=False)
                    name = _file(group, functions[place])
                    self._vault.write(name, file.getvalue(), durable=True)
        if self._keeps:
            leaving = self._named(functions, found)
            self._odometer.settle(group, {place: name for place, name in leaving.items() if name})
        return {place: array for place, array in found.items() if array is not None}

    def _kept(self, group: str, function: str) -> np.ndarray | None:
        """Return what is to leave, if it was drawn before."""
        kept = self._vault.read(_file(group, function)) if self._keeps else None
        return None if kept is None else np.load(io.BytesIO(kept), allow_pickle=False)

    def _named(
        self, functions: Mapping[str, str], found: Mapping[str, np.ndarray | None]
    ) -> dict[str, str | None]:
        """Return what tells what leaves from all else; None while it is not drawn.

        That is the bytes where noise is new each time; else what they are a function of, and
        nothing that is drawn before it is paid for: whether that fails is an answer, too.
        """
        if not self._keeps:
            return dict(functions)
        return {
            place: None if array is None else function_of(functions[place], array.tobytes())
            for place, array in found.items()
        }


def function_of(*parts: Any) -> str:
    """Return the digest of what a release is computed from: texts, numbers, bytes."""
    texts = [part.hex() if isinstance(part, bytes) else part for part in parts]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _file(group: str, function: str) -> str:
    return f"released-{function_of(group)[:16]}-{function}"
