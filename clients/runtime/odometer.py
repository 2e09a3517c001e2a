"""What all releases of a node's images add up to, whatever run they were of.

A *release* is what leaves the node and was computed from private images. It is a function of
everything that crossed to the node and of everything else it was computed from. Asked for the
same function again, a node gives the same bytes; any other is a release of its own, and is paid
for before it leaves, or refused.

The record of one node lies beside the vaults of its runs. In it are one *entry* for each release
of a set of images, in order, and for each *group*, in which an image is in one *place* at most (an
epoch, and its batches), which places have left, and as what.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pudica.clients.runtime.vault import Vault
from pudica.models.clock import timestamp
from pudica.models.files import file_lock, write_atomically

RECORD = "odometer"
KNOWN = "paid-for"
ACTIVATIONS = "activations"
COUNTS = "counts"
IN_THE_CLEAR = "in the clear"
ROUNDING = 1e-9
"""Of an ε that was calibrated to a limit, it may be above it by so much."""

Part = Literal["train", "validation", "test"]


class BudgetExhausted(RuntimeError):
    """Something was to be released that this node's limits do not allow."""


class RecordRolledBack(RuntimeError):
    """The record of what was released is older than something else that this node remembers."""


@dataclass(frozen=True)
class Release:
    """One kind of release.

    Attributes
    ----------
    run, case : str
        For whom.
    what : str
        ``activations`` or ``counts``, or ``in the clear``.
    part : {"train", "validation", "test"}
        Of which images.
    division : str
        Tells how the node's images were divided into parts.
    noise, ratio : {"gaussian", "laplace"} or None, float
        As of :class:`pudica.clients.shields.accounting.Cost`. None: it has no guarantee.
    """

    run: str
    case: str
    what: str
    part: Part
    division: str
    noise: Literal["gaussian", "laplace"] | None
    ratio: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A release that was paid for: once at most for each image of the group, at this time."""

    release: Release
    group: str
    at: str


class Limits(NamedTuple):
    """What is allowed.

    Attributes
    ----------
    epsilon, delta : float or None, float
        What all releases of an image may add up to.
    activations : int or None
        How often an image's activations may leave.
    case : (str, str) or None
        The run and the case for which it allows that; None: for all of them together.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    activations: int | None = None
    case: tuple[str, str] | None = None


class Planned(NamedTuple):
    """A kind of release, and how often one case of one run may make it."""

    release: Release
    most: int


class Odometer:
    """The record of one node.

    Parameters
    ----------
    vault : Vault
        Of one of its runs. It remembers how far the record was, too.
    anchor : Path, optional
        A file elsewhere that remembers it.
    """

    def __init__(self, vault: Vault, anchor: Path | None = None) -> None:
        self._run = vault
        self._record = Vault(vault.lasting)
        self._anchor = anchor

    def entries(self) -> list[Entry]:
        """Return all that was paid for, in order; RecordRolledBack if there was more once."""
        return self._read()[0]

    def _read(self) -> tuple[list[Entry], int]:
        """Return everything that was paid for, and how many batches and answers have left."""
        kept = json.loads(self._record.read(RECORD) or b'{"entries": [], "left": 0}')
        entries = [Entry(Release(**each.pop("release")), **each) for each in kept["entries"]]
        done = len(entries) + kept["left"]
        anchored = self._anchor.read_bytes() if self._anchor and self._anchor.exists() else b"0"
        known = max(int(self._run.read(KNOWN) or b"0"), int(anchored))
        if done < known:
            raise RecordRolledBack(
                f"this node has noted {known} steps of releases, and its record in "
                f"{self._record.root} knows of {done}: it was put back to an earlier state. Give "
                "it back as it was; nothing is released before"
            )
        return entries, kept["left"]

    def check(self, planned: Sequence[Planned], limits: Sequence[Limits]) -> None:
        """Raise BudgetExhausted unless what is planned fits beside all that was released."""
        times = count(self.entries())
        for release, most in planned:
            times[release] = max(times[release], most)
        _check(times, limits)

    def reserve(
        self,
        planned: Planned,
        group: str,
        wanted: Mapping[str, str | None],
        limits: Sequence[Limits],
    ) -> None:
        """Pay for what is to be released and was not yet.

        Parameters
        ----------
        group : str
            In which an image is in one place at most.
        wanted : mapping of str to str or None
            By place, the bytes that are to leave: what tells them from others, None if they are
            still to be computed. Bytes that left their place before leave again for nothing.

        Raises
        ------
        BudgetExhausted
            If it is more than this case or this node may release; nothing is paid for.
        """
        with self._lock():
            (entries, settled), left = self._read(), self._left(group)
            new = [p for p, what in wanted.items() if not _has_left(left, p, what)]
            needed = max((_turns(left, place) + 1 for place in new), default=0)
            own = sum((e.group, e.release) == (group, planned.release) for e in entries)
            if needed > own:
                more = [Entry(planned.release, group, timestamp())] * (needed - own)
                _check_case(entries, more, planned)
                _check(count([*entries, *more]), limits)
                self._write([*entries, *more], settled)

    def settle(self, group: str, leaving: Mapping[str, str]) -> None:
        """Note what is about to leave, by place; once it is kept, and before it leaves."""
        with self._lock():
            left = self._left(group)
            new = {p: what for p, what in leaving.items() if not _has_left(left, p, what)}
            for place, what in new.items():
                turn = _turns(left, place)
                left += [{} for _ in range(turn + 1 - len(left))]
                left[turn][place] = what
            if new:
                entries, settled = self._read()
                self._record.write(_file(group), json.dumps(left).encode(), durable=True)
                self._write(entries, settled + len(new))

    def note(self, release: Release) -> None:
        """Write down a release that nothing limits, once."""
        with self._lock():
            entries, settled = self._read()
            if release not in (entry.release for entry in entries):
                self._write([*entries, Entry(release, "", timestamp())], settled)

    def _lock(self) -> AbstractContextManager[None]:
        return file_lock(self._record.root / ".lock")

    def _left(self, group: str) -> list[dict[str, str]]:
        """Return for each entry of a group which places have left under it, and as what."""
        return list(json.loads(self._record.read(_file(group)) or b"[]"))

    def _write(self, entries: list[Entry], left: int) -> None:
        kept = {"entries": [asdict(entry) for entry in entries], "left": left}
        self._record.write(RECORD, json.dumps(kept, indent=1).encode(), durable=True)
        known = str(len(entries) + left).encode()
        self._run.write(KNOWN, known, durable=True)
        if self._anchor:
            self._anchor.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._anchor, known, 0o600, durable=True)


def anchor_of(vaults: Path) -> Path:
    """Return the file by which a node, whose ``vault`` this is, notices that it was put back."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    name = hashlib.blake2b(str(vaults.absolute()).encode(), digest_size=16).hexdigest()
    return state / "pudica" / "odometers" / name


def count(entries: Iterable[Entry]) -> Counter[Release]:
    """Return how often each kind of release was paid for."""
    return Counter(entry.release for entry in entries)


def spent(times: Mapping[Release, int], delta: float) -> float:
    """Return the ε that releases add up to, for the image that they tell most of.

    An image is in one part only, while images are divided in one way. Where they were divided in
    several, it may have been in any: then all adds up. Infinite if something was released without
    a guarantee.
    """
    worst = 0.0
    for own in _by_image(times):
        costs: Counter[tuple[str | None, float]] = Counter()
        for release, number in own.items():
            costs[release.noise, release.ratio] += number
        epsilon = _composed(frozenset(costs.items()), delta)
        worst = math.inf if math.isnan(epsilon) else max(worst, epsilon)
    return worst


@lru_cache(maxsize=256)
def _composed(costs: frozenset[tuple[tuple[Any, float], int]], delta: float) -> float:
    # Imported late: it takes seconds, which only those pay who have limits.
    from pudica.clients.shields.accounting import Cost, compose_costs

    return compose_costs([(Cost(*cost), number) for cost, number in costs if number], delta)[0]


def activations(times: Mapping[Release, int]) -> int:
    """Return how often activations of one image have left, at most."""
    own = {release: n for release, n in times.items() if release.what == ACTIVATIONS}
    return max((sum(each.values()) for each in _by_image(own)), default=0)


def _by_image(times: Mapping[Release, int]) -> list[dict[Release, int]]:
    """Return releases in groups; no image is in those of more than one."""
    left = {release: number for release, number in times.items() if number}
    if len({release.division for release in left}) > 1:
        return [left]
    parts: dict[str, dict[Release, int]] = {}
    for release, number in left.items():
        parts.setdefault(release.part, {})[release] = number
    return list(parts.values())


def _check(times: Mapping[Release, int], limits: Sequence[Limits]) -> None:
    for limit in limits:
        own = {r: n for r, n in times.items() if limit.case in (None, (r.run, r.case))}
        within = "in this case" if limit.case else "in all runs together"
        most = limit.activations
        if most is not None and (number := activations(own)) > most:
            raise BudgetExhausted(
                f"the budget is exhausted: an image's activations may leave {_times(most)}, "
                f"{within}, and would have left {_times(number)}"
            )
        if limit.epsilon is None:
            continue
        epsilon = spent(own, limit.delta)
        # Negated, so that what is no number is not within any limit.
        if not epsilon <= limit.epsilon * (1 + ROUNDING):
            raise BudgetExhausted(
                f"the budget is exhausted: it is ε = {limit.epsilon:.4g} (δ = {limit.delta:.4g}) "
                f"for one image, {within}, and would be ε = {epsilon:.4g} with this release"
            )


def _check_case(entries: list[Entry], new: list[Entry], planned: Planned) -> None:
    done, release = sum(entry.release == planned.release for entry in entries), planned.release
    if done + len(new) > planned.most:
        raise BudgetExhausted(
            f"the budget is exhausted: {release.what} of the {release.part} images may leave "
            f"{_times(planned.most)} in this case, and have left {_times(done)}"
        )


def _has_left(left: list[dict[str, str]], place: str, what: str | None) -> bool:
    return what is not None and any(each.get(place) == what for each in left)


def _turns(left: list[dict[str, str]], place: str) -> int:
    """Return how many releases of a place have left."""
    return sum(place in each for each in left)


def _file(group: str) -> str:
    return f"left-{hashlib.blake2b(group.encode(), digest_size=16).hexdigest()}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
