"""Text from elsewhere as it may be shown: nothing in it moves a cursor, or stays unseen."""

from __future__ import annotations

import re
import unicodedata

SHOWN = 60

# By their categories these are letters, marks and symbols; nothing of them is to be seen.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def to_nfc(text: str) -> str:
    """Return a text in the one spelling (NFC) of those that Unicode holds for the same."""
    return unicodedata.normalize("NFC", text)


def is_hidden(character: str) -> bool:
    """Tell whether a character is not to be seen as itself.

    Controls, line breaks, direction marks, halves of characters (surrogates), private and unknown
    ones are not, nor are spaces other than ``" "``, or letters of no width.
    """
    return not character.isprintable() or _BLANK.match(character) is not None


def escape_hidden(text: str, keep: str = "") -> str:
    r"""Return a text with hidden characters written as in Python: ``\x1b``, ``\u202e``.

    Parameters
    ----------
    keep : str
        Characters that stay as they are.
    """
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(c if c in keep or not is_hidden(c) else _escape(c) for c in text)


def quote(text: str) -> str:
    """Return a text in quotes, as much of it as messages show, with hidden characters escaped."""
    return f"'{escape_hidden(text[:SHOWN])}{'…' if len(text) > SHOWN else ''}'"


def remove_colours(text: str) -> str:
    """Return a program's output without the codes that colour it."""
    return _COLOURS.sub("", text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
