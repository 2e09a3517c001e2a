"""What other packages bring: objects that they name as entry points of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import TypeVar

T = TypeVar("T")


def load_plugins(
    group: str, kind: type[T], known: dict[str, T], name_of: Callable[[T], str]
) -> Iterator[str]:
    """Add to ``known`` what packages bring, by name; yield why something was left out.

    Left out is what can't be loaded, is of another type, or has a name that is taken: the others
    work without.
    """
    for point in entry_points(group=group):
        try:
            found = point.load()
        except Exception as error:
            reason = f"can't be loaded: {type(error).__name__}: {error}"
        else:
            what = kind.__name__
            if not isinstance(found, kind):
                reason = f"is no {what}"
            elif (name := name_of(found)) in known:
                reason = f"there is a {what.lower()} '{name}'"
            else:
                known[name] = found
                continue
        package = point.dist.name if point.dist else "an unknown package"
        yield f"entry point {point.name} = {point.value} of {package}: {reason}; left out"
