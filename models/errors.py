"""Errors that name what is wrong, where, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pudica.models.printable import escape_hidden


class RequestError(ValueError):
    """The request is wrong: nothing was started, and the message says what is allowed.

    Names that nobody has validated yet may stand in the message: as a text, it is printable.
    """

    def __str__(self) -> str:
        """Return the message with its hidden characters escaped; lines stay lines."""
        return escape_hidden(super().__str__(), keep="\n")


def unknown_name_error(kind: str, name: str, allowed: Iterable[str]) -> RequestError:
    """Return the error for a name that is not in a registry, with the nearest right one.

    Parameters
    ----------
    kind : str
        What the name should have been, for example ``"model"``.
    name : str
        What was asked for.
    allowed : iterable of str
        Every right name.
    """
    choices = sorted(allowed)
    lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean '{lower[close[0]]}'?" if close else ""
    return RequestError(f"unknown {kind} '{name}'.{hint} Allowed: {', '.join(choices)}")
