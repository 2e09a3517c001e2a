"""The ledger of a run: what left its owner, how often, and the resulting privacy of a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from pudica.analysis.runs import open_run
from pudica.clients.shields import Guarantee, Mechanism
from pudica.clients.shields.accounting import compose_rdp, compose_releases
from pudica.clients.shields.base import NO_NOISE
from pudica.models.errors import RequestError
from pudica.strategies.core.releases import FILE, IN_THE_CLEAR, Release

DELTA = 1e-5
"""Default δ of all releases of a record together."""

TRAINED = (
    "the front was trained on the private data without differential privacy: each record moves "
    "the activations of all others through the front"
)
STEERED = (
    "the cloud decides what this front learns: it can steer it until private images can be "
    "rebuilt from its activations (feature-space hijacking), which noise for one element does not "
    "prevent"
)
SEEDED = "it is drawn from the run's seed: who knows that draws it again, and undoes it"
STATISTICS = "are normalised by statistics of training records, without noise"
COUNTED = ("training", "served")
"""The kinds of records that a verdict covers."""
HELD_OUT = ("validation", "test")
FACTS = ("case", "what", "records", "nodes", "count", "mechanism", "randomness", "claimed")
NUMBERS = ("record_epsilon", "record_delta", "composed_epsilon", "composed_rdp")


def releases(run: str | Path) -> list[Release]:
    """Return the ledger of a run: an entry per node and kind of release that took place.

    Raises
    ------
    RequestError
        If there is no such run, it has no ledger, or the ledger is damaged.
    """
    opened = open_run(run)
    path = opened.directory / FILE
    if not path.is_file():
        reason = f"keeps no ledger of what was released, it lacks {FILE}"
        if opened.info.get("system") == "themis":
            reason = "a THEMIS competition promises no differential privacy, and keeps no ledger"
        raise RequestError(f"{run}: {reason}")
    try:
        entries = TypeAdapter(list[Release]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise RequestError(f"{path}: can't be read: {_first_error(error)}") from error
    for number, entry in enumerate(entries):
        try:
            _ = entry.protection
        except ValueError as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                problem = f"shield: {_first_error(error)}"
            raise RequestError(f"{path}: can't be read: entry {number}: {problem}") from error
    return [entry for entry in entries if entry.count]


def privacy(run: str | Path, delta: float = DELTA) -> pd.DataFrame:
    """Return a table of all releases, a row per kind; ``delta`` is of all of a record together.

    Returns
    -------
    DataFrame
        ``case, what, records``; ``nodes``: their number; ``count``: maximum number of releases
        of a record; ``mechanism, randomness``; ``claimed``: by the shield's paper;
        ``record_epsilon, record_delta``: of a record in one release;
        ``composed_epsilon``: in all of this kind, and ``composed_rdp``, the same by Rényi
        differential privacy, see :mod:`pudica.clients.shields.accounting`; ``reasons``: a tuple of
        texts. An ε that is not finite is NaN.

    Raises
    ------
    RequestError
        As :func:`releases`; or if δ is not between 0 and 1.
    """
    rows = [_table_row(group, delta) for group in _group_by(releases(run), "kind").values()]
    frame = pd.DataFrame(rows, columns=[*FACTS, *NUMBERS, "reasons"])
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def verdict(run: str | Path, delta: float = DELTA) -> dict[str, Guarantee]:
    """Return each case's guarantee for a training or served record, considering that case alone.

    A record belongs to one node, so nodes do not compose: the worst one counts. Data declared
    public are not counted but listed among the reasons. Cases of a run release the same records:
    see :func:`verdict_of_all`. Arguments and errors as of :func:`privacy`.
    """
    cases = _group_by(releases(run), "case")
    return {case: _verdict(entries, delta) for case, entries in cases.items()}


def verdict_on_held_out(run: str | Path, delta: float = DELTA) -> dict[tuple[str, str], Guarantee]:
    """Return the guarantee for a held-out record by case and kind (``validation``, ``test``).

    Records without any promise are left out; otherwise as :func:`verdict`.
    """
    found: dict[tuple[str, str], Guarantee] = {}
    for case, entries in _group_by(releases(run), "case").items():
        for records, own in _group_by(entries, "records").items():
            if records in HELD_OUT and any(entry.integers for entry in own):
                found[case, records] = _verdict(own, delta, (records,))
    return found


def verdict_of_all(run: str | Path, delta: float = DELTA) -> Guarantee:
    """Return the guarantee for a training record over all cases of a run; as :func:`verdict`.

    Releases by the same devices in other runs are not included.
    """
    return _verdict(releases(run), delta)


def claims(run: str | Path) -> dict[str, Guarantee]:
    """Return the paper's claim for one release of training examples, by case.

    Cases without a shield are left out. Raises as :func:`releases`.
    """
    own = (entry for entry in releases(run) if entry.records == "training")
    found = {entry.case: entry.claimed for entry in own if entry.claimed}
    return {case: claim for case, claim in found.items() if claim.epsilon is not None}


def _first_error(error: ValidationError) -> str:
    """Return the first validation error and its location."""
    mistake = error.errors()[0]
    places = (f"entry {part}" if isinstance(part, int) else part for part in mistake["loc"])
    return ": ".join([*places, mistake["msg"]])


def _group_by(entries: Iterable[Release], key: str) -> dict[str, list[Release]]:
    """Group entries by an attribute, in order of appearance."""
    groups: dict[str, list[Release]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry, key), []).append(entry)
    return groups


# ------------------------------------------------------------------------------ a row


def _table_row(group: list[Release], delta: float) -> dict[str, Any]:
    """Return the row of :func:`privacy` for all nodes' releases of one kind."""
    one, nodes = group[0], _group_by(group, "node")
    count = max(sum(entry.count for entry in own) for own in nodes.values())
    composed: dict[str, float | None] = {}
    if one.held.epsilon is not None and not one.trained_front:
        assert isinstance(one.protection, Mechanism)
        parts = [(one.protection, count)]
        composed["composed_epsilon"] = compose_releases(parts, delta).epsilon
        composed["composed_rdp"] = compose_rdp(parts, delta)
    return {
        "case": one.case,
        "what": one.what,
        "records": one.records,
        "nodes": len(nodes),
        "count": count,
        "mechanism": one.mechanism,
        "randomness": one.randomness,
        "claimed": str(one.claimed) if one.claimed and one.claimed.epsilon else "nothing",
        "record_epsilon": one.held.epsilon,
        "record_delta": None if one.held.epsilon is None else one.held.delta,
        **composed,
        "reasons": _collect_reasons(one),
    }


def _collect_reasons(release: Release) -> tuple[str, ...]:
    # Public data need no protection, so releasing them in the clear is no reason.
    found = [] if release.public else list(release.held.reasons)
    claims = release.claimed.reasons if release.claimed else ()
    found += [f"claimed: {reason}" for reason in claims if reason not in found]
    found += ["declared public"] if release.public else []
    found += [TRAINED] if release.trained_front else []
    found += [SEEDED] if release.randomness == "seeded" else []
    found += [f"sampling: {release.sampling}"] if release.sampling else []
    return tuple(dict.fromkeys(found))


# -------------------------------------------------------------------------- a verdict


def _verdict(entries: list[Release], delta: float, records: Sequence[str] = COUNTED) -> Guarantee:
    private = [entry for entry in entries if not entry.public]
    own = [entry for entry in private if entry.records in records]
    # A trained front reveals its training data in everything it computes, even on test images.
    flaws = [flaw for entry in own for flaw in _find_flaws(entry)]
    for entry in private:
        flaws += [TRAINED, STEERED] if entry.trained_front else []
    flaws += [f"{entry.what} {STATISTICS}" for entry in private if _uses_statistics(entry)]
    if flaws:
        return Guarantee("record", None, reasons=tuple(dict.fromkeys(flaws)))
    worst = _worst_guarantee(own, delta)
    public = [f"{e.what} are public" for e in entries if e.public and e.records in records]
    if any(entry.randomness == "seeded" for entry in own):
        otherwise = f"with secret noise: {worst}"
        return Guarantee("record", None, reasons=(SEEDED, otherwise, *worst.reasons))
    return dataclasses.replace(worst, reasons=tuple(dict.fromkeys([*worst.reasons, *public])))


def _uses_statistics(release: Release) -> bool:
    """Return whether statistics of training examples normalise a release, in images or shield."""
    mechanism = release.protection
    remembers = isinstance(mechanism, Mechanism) and any(True for _ in mechanism.buffers())
    by_shield = remembers and release.mode == "eval" and release.records in HELD_OUT
    return release.statistics or by_shield


def _find_flaws(release: Release) -> list[str]:
    """Return the reasons why a record has no finite ε in one kind of release."""
    if release.held is IN_THE_CLEAR:
        return [f"{release.what} are released in the clear"]
    if release.held is NO_NOISE:
        return [f"{release.what} are released without noise"]
    if release.held.epsilon is None:
        return [f"{release.what}: {reason}" for reason in release.held.reasons]
    return []


def _worst_guarantee(own: list[Release], delta: float) -> Guarantee:
    """Return the guarantee for a record of the node that releases most."""
    if not own:
        return Guarantee("record", 0.0, reasons=("no private tensor of a training record leaves",))
    nodes = []
    for entries in _group_by(own, "node").values():
        parts = [(e.protection, e.count) for e in entries if isinstance(e.protection, Mechanism)]
        counts = [
            f"{e.what}: a record is released {_count_in_words(e.count)} at most" for e in entries
        ]
        total = compose_releases(parts, delta)
        nodes.append(dataclasses.replace(total, reasons=(*counts, *total.reasons)))
    return max(nodes, key=lambda guarantee: guarantee.epsilon or 0.0)


def _count_in_words(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
