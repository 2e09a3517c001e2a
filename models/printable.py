"""Make foreign text safe to display: no control sequences, no invisible characters."""

from __future__ import annotations

import html
import re
import unicodedata

SHOWN = 60

# Unicode classes these as letters, marks and symbols, but they are invisible.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def to_nfc(text: str) -> str:
    """Return a text in Unicode's normal form NFC."""
    return unicodedata.normalize("NFC", text)


def is_hidden(character: str) -> bool:
    """Tell whether a character does not show as itself.

    These are controls, line breaks, direction marks, surrogates, private and unassigned
    characters, spaces other than ``" "``, and letters without width.
    """
    return not character.isprintable() or _BLANK.match(character) is not None


def escape_hidden(text: str, keep: str = "") -> str:
    r"""Return a text with hidden characters, except those to ``keep``, escaped: ``\x1b``."""
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(
        c if c in keep or not is_hidden(c) else c.encode("unicode_escape").decode() for c in text
    )


def escape_html(text: str) -> str:
    """Return a text with hidden characters and markup escaped."""
    return html.escape(escape_hidden(text))


def quote(text: str) -> str:
    """Return a text in quotes, shortened for messages, with hidden characters escaped."""
    return f"'{escape_hidden(text[:SHOWN])}{'…' if len(text) > SHOWN else ''}'"


def remove_colours(text: str) -> str:
    """Return a program's output without its colour codes."""
    return _COLOURS.sub("", text)
