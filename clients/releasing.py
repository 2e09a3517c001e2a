"""How a device releases what it computed from private images: paid for, kept, sent again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clients.odometer import Limits, Odometer, Planned
from clients.vault import Vault


class Releases:
    """What one device may release in one case, and what it has released.

    Parameters
    ----------
    vault : Vault
        Of the run.
    odometer : Odometer
    limits : sequence of Limits
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
        """See that all that is planned fits; see :meth:`Odometer.check`."""
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
        planned : Planned
            The kind of release.
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
        found = {place: self._found(group, place, f, draw) for place, f in functions.items()}
        self._odometer.reserve(planned, group, _named(functions, found), self._limits)
        for place, array in found.items():
            if array is None:
                found[place] = drawn = draw(place)
                self._vault.write(_file(group, functions[place]), _as_bytes(drawn), durable=True)
        self._odometer.settle(group, {p: n for p, n in _named(functions, found).items() if n})
        return {place: array for place, array in found.items() if array is not None}

    def _found(
        self, group: str, place: str, function: str, draw: Callable[[str], np.ndarray]
    ) -> np.ndarray | None:
        """Return what is to leave, if it need not be drawn first."""
        if not self._keeps:
            return draw(place)
        kept = self._vault.read(_file(group, function))
        return None if kept is None else np.load(io.BytesIO(kept), allow_pickle=False)

    def forget(self, group: str) -> None:
        """Drop what was released in a group, that nobody will ask for again.

        Who does is refused, or pays again.
        """
        for path in self._vault.root.glob(f"{_file(group, '')}*"):
            self._vault.delete(path.name)


def function_of(*parts: Any) -> str:
    """Return the digest of what a release is computed from: texts, numbers, bytes."""
    texts = [part.hex() if isinstance(part, bytes) else part for part in parts]
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _named(
    functions: Mapping[str, str], found: Mapping[str, np.ndarray | None]
) -> dict[str, str | None]:
    """Return what tells the bytes that leave from others; None while they are not drawn."""
    return {
        place: None if array is None else function_of(functions[place], array.tobytes())
        for place, array in found.items()
    }


def _as_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _file(group: str, function: str) -> str:
    return f"released-{function_of(group)[:16]}-{function}"
