"""Names of classes and attributes: renamed by their owner, and matched to those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pudica.clients.data.cache import CachedDataset
from pudica.clients.data.errors import DataError, join_names
from pudica.models.errors import suggest_name
from pudica.models.printable import quote

Integers = NDArray[np.int64]

ADVICE = "give it that name in data.rename, as {own: theirs}"


def rename(names: Sequence[str], new: Mapping[str, str], what: str) -> list[str]:
    """Return names of classes or attributes, some of them replaced.

    Raises DataError if two become one; ``what``, such as ``classes``, is for its message.
    """
    renamed = [new.get(name, name) for name in names]
    for place, name in enumerate(renamed):
        if (first := renamed.index(name)) < place:
            raise DataError(
                f"rename: the {what} {quote(names[first])} and {quote(names[place])} would both be "
                f"{quote(name)}; each needs a name of its own"
            )
    return renamed


def check_renamed(new: Mapping[str, str], known: Sequence[str], stored: CachedDataset) -> None:
    """Raise DataError if something is renamed that is no class and no attribute of the data."""
    for name in new:
        if name not in known:
            raise DataError(
                f"rename: {quote(name)} is no class and no attribute of {stored.base}."
                f"{suggest_name(name, known)} Allowed: {join_names(known)}"
            )


def match_classes_of_run(
    stored: CachedDataset, labels: Integers, own: list[str], wanted: Sequence[str], notes: list[str]
) -> tuple[Integers, list[str]]:
    """Return labels numbered as wanted, by the names of their classes, and the wanted names.

    What is left out already, with the label -1, stays so. Another numbering is noted.

    Raises DataError if an image has a class that is not wanted.
    """
    number = {name: place for place, name in enumerate(wanted)}
    present = [own[label] for label in np.unique(labels) if label >= 0]
    if strange := [name for name in present if name not in number]:
        raise DataError(
            f"{stored.base} has images of {join_names(map(quote, strange[:5]))}, which the run's "
            f"classes lack: {join_names(map(quote, wanted))}.{suggest_name(strange[0], wanted)} "
            f"If a class is another's under a name of its own, {ADVICE}"
        )
    if list(wanted) != own:
        notes.append(f"classes are numbered as the run names them: {_describe(present, number)}")
    places = np.array([number.get(name, -1) for name in own] + [-1], np.int64)
    return places[labels], list(wanted)


def match_attributes_of_run(
    stored: CachedDataset,
    answers: Integers,
    own: Sequence[str],
    wanted: Sequence[str],
    notes: list[str],
) -> tuple[Integers, list[str]]:
    """Return attributes, (N, A), in the wanted order, by their names, and the wanted names.

    Those that are not wanted are left out. Another order is noted.

    Raises DataError if one is wanted that there is not.
    """
    if missing := [name for name in wanted if name not in own]:
        raise DataError(
            f"attributes: the run asks for {join_names(map(quote, missing[:5]))}, which those of "
            f"{stored.base} lack: {join_names(map(quote, own))}.{suggest_name(missing[0], own)} "
            f"Name it in data.attributes; if it has another name here, {ADVICE}"
        )
    if list(wanted) != list(own):
        number = {name: place for place, name in enumerate(wanted)}
        notes.append(f"attributes are numbered as the run names them: {_describe(wanted, number)}")
    return answers[:, [own.index(name) for name in wanted]], list(wanted)


def _describe(names: Sequence[str], number: Mapping[str, int]) -> str:
    return ", ".join(f"{quote(name)} is {number[name]}" for name in names[:10])
