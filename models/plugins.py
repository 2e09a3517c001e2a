"""What other packages bring: objects that they name as entry points of a group."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from importlib.metadata import entry_points
from typing import Any, TypeVar

T = TypeVar("T")


def load_plugins(
    group: str,
    kind: type,
    known: dict[str, T],
    name_of: Callable[[T], str],
    subclasses: bool = False,
) -> Iterator[str]:
    """Add to ``known`` what packages bring, by name; yield why something was left out.

    Left out is what can't be loaded, is of another type, or has no name or one that is taken: the
    others work without.

    Parameters
    ----------
    group : str
        Of entry points.
    kind : type
        What an entry point has to name an object of; with ``subclasses``, a subclass of.
    known : dict
        Changed in place.
    name_of : callable
        Returns an object's name, or raises ValueError, which says why there is none.
    """
    for point in entry_points(group=group):
        try:
            found = point.load()
        except Exception as error:
            reason = f"can't be loaded: {type(error).__name__}: {error}"
        else:
            try:
                known[_find_name(found, kind, known, name_of, subclasses)] = found
                continue
            except ValueError as error:
                reason = str(error)
            except Exception as error:
                reason = f"has no name: {type(error).__name__}: {error}"
        package = point.dist.name if point.dist else "an unknown package"
        yield f"entry point {point.name} = {point.value} of {package}: {reason}; left out"


def _find_name(
    found: Any,
    kind: type,
    known: Container[str],
    name_of: Callable[[Any], str],
    subclasses: bool,
) -> str:
    """Return the name of what was loaded; ValueError if it is of another type, or taken."""
    what = kind.__name__
    if subclasses and not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"is no subclass of {what}")
    if not subclasses and not isinstance(found, kind):
        raise ValueError(f"is no {what}")
    if (name := name_of(found)) in known:
        raise ValueError(f"there is a {what.lower()} '{name}'")
    return name
