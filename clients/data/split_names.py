"""Which split a file or a folder of a data set holds: told by its name, or said in the settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from pudica.clients.data.errors import DataError, join_names
from pudica.models.printable import quote, to_nfc

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

KEYWORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words that name a split, with any separator or number beside them; as in ``datasets`` of the
Hugging Face Hub."""

NONE: Literal["none"] = "none"
Patterns = Mapping[Split, Sequence[str]] | Literal["none"]
GivenPatterns = Mapping[Split, str | Sequence[str]] | Literal["none"]
"""As they may be written: a single pattern needs no list."""

ADVICE = (
    "say it in data.splits, as {train: 'fit*', test: 'holdout*'}, or `data.splits: none` if there "
    "are no splits"
)
_WORD = re.compile(r"[^-_. 0-9/]+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SplitRules(NamedTuple):
    """How to tell which split a file or a folder holds.

    Attributes
    ----------
    patterns : mapping of str to sequence of str, "none" or None
        ``data.splits``; None: names tell it.
    pooled : bool
        Whether all splits are divided anew, so that it does not matter where no name tells it.
    """

    patterns: Patterns | None = None
    pooled: bool = False


BY_NAME = SplitRules()


def find_split(name: str) -> Split | None:
    """Return the split that a name speaks of, or None; DataError if it speaks of several."""
    found = sorted({KEYWORDS[word[0]] for word in _find_keywords(name)})
    if len(found) > 1:
        raise DataError(f"{quote(name)} speaks of {' and of '.join(found)}: {ADVICE}")
    return found[0] if found else None


def _find_keywords(name: str) -> list[re.Match[str]]:
    """Return the words in a name that speak of a split."""
    words = _WORD.finditer(to_nfc(name).casefold())
    return [word for word in words if word[0] in KEYWORDS]


class Assigned(NamedTuple):
    """Which files or folders hold which split, and what to say of it."""

    paths: dict[Split, list[Path]]
    note: str


def assign_splits(
    by_name: Mapping[str, Path],
    rules: SplitRules,
    where: Path,
    is_whole: Callable[[Mapping[str, Split]], bool],
) -> Assigned | None:
    """Return by split what holds it; None if there are no splits.

    Parameters
    ----------
    by_name : mapping of str to Path
        Files or folders by what is told by their names.
    is_whole : callable
        Given those whose names speak of a split, tells whether there are no splits after all;
        raises DataError where that is not plain.

    Raises DataError where it is not plain: a silent mistake would train on test images.
    """
    if rules.patterns == NONE:
        return None
    if rules.patterns is not None:
        matched = match_splits(list(by_name), rules.patterns, str(where))
    else:
        named = {name: split for name in by_name if (split := find_split(name))}
        if is_whole(named):
            return None
        require_one_family(named, str(where))
        matched = {split: [n for n, own in named.items() if own == split] for split in SPLITS}
    require_training(matched, str(where))
    paths = {split: [by_name[name] for name in names] for split, names in matched.items()}
    return Assigned(paths, describe_splits(matched))


def match_splits(
    names: Sequence[str], patterns: Mapping[Split, Sequence[str]], where: str
) -> dict[Split, list[str]]:
    """Return by split the names that its patterns match.

    Raises
    ------
    DataError
        A name is matched by no pattern, or by those of two splits; or a pattern matches none.
    """
    found: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for name in names:
        splits = [
            split
            for split, own in patterns.items()
            if any(fnmatchcase(to_nfc(name), to_nfc(pattern)) for pattern in own)
        ]
        if len(splits) != 1:
            problem = " and of ".join(splits) or "no split"
            raise DataError(f"data.splits: {quote(name)} in {where} is of {problem}")
        found[splits[0]].append(name)
    if empty := [split for split in patterns if not found[split]]:
        raise DataError(
            f"data.splits: nothing in {where} matches {empty[0]}: "
            f"{join_names(patterns[empty[0]])}; it holds: {join_names(names)}"
        )
    return found


def are_shards(names: Iterable[str]) -> bool:
    """Tell whether names differ in numbers only, as those of the pieces of one table do."""
    return len({re.sub(r"\d+", "", _UUID.sub("", name)) for name in names}) == 1


def require_one_family(named: Mapping[str, Split], where: str) -> None:
    """Raise DataError if splits are of several sets, or folds: one's test is another's training."""
    if len(set(named.values())) == 1:
        return
    before: dict[str, str] = {}
    for name in named:
        keyword = _find_keywords(name)[0]
        before.setdefault(keyword.string[: keyword.start()], name)
    if len(before) > 1:
        raise DataError(
            f"{where}: {join_names([*before.values()][:3])} belong to different sets, or folds of "
            f"one: name the folder of a single one, or {ADVICE}"
        )


def require_training(found: Mapping[Split, Sequence[str]], where: str) -> None:
    """Raise DataError if there is a test or validation split and none to train on."""
    if not found["train"]:
        held = [name for names in found.values() for name in names]
        raise DataError(
            f"{where} has no training split: found {join_names(held)}. Call one 'train', or "
            f"{ADVICE}"
        )


def describe_splits(found: Mapping[Split, Sequence[str]]) -> str:
    """Return in words what was taken for which split."""
    taken = []
    for split, names in found.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            taken.append(f"{join_names(names[:3])}{more} as {split}")
    return f"taken for splits: {'; '.join(taken)}"
