"""Errors that name what is wrong, where, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pudica.models.printable import escape_hidden


class RequestError(ValueError):
    """A wrong request: nothing was started, and the message says what is allowed.

    The message may contain unvalidated names, since converting it to text makes it printable.
    """

    def __str__(self) -> str:
        """Return the message with hidden characters escaped, except line breaks."""
        return escape_hidden(super().__str__(), keep="\n")

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message, which says all, without our own lines."""
        return [f"{type(self).__name__}: {self}"]


def unknown_name_error(kind: str, name: str, allowed: Iterable[str]) -> RequestError:
    """Return the error for a name of a ``kind``, say a model, that is none of the allowed ones."""
    choices = sorted(allowed)
    hint = suggest_name(name, choices)
    return RequestError(f"unknown {kind} '{name}'.{hint} Allowed: {', '.join(choices)}")


def suggest_name(name: str, allowed: Iterable[str]) -> str:
    """Return a question after the allowed name that is most like this one; "" if none is."""
    lower = {choice.lower(): choice for choice in allowed}
    close = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" Did you mean '{lower[close[0]]}'?" if close else ""
