"""CSV that a spreadsheet opens as data: no cell of it is run as a formula.

Spreadsheets take a cell for a formula that begins with ``=``, ``+``, ``-`` or ``@`` (OWASP, *CSV
Injection*), and may look for one behind spaces, quotation marks, and characters that are not to
be seen. So a text that begins so, or with a tab or a line break, gets an apostrophe in front, by
which a spreadsheet knows it for text; headings do, too. Where semicolons or tabs separate cells, a
comma's file falls into other cells than it was written in: what would begin one of those is
treated alike. Texts are in quotes, numbers stay as they are, and :func:`read_csv` takes back what
was put in.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.models.files import write_atomically
from pudica.models.naming import QUOTES, SIGNS
from pudica.models.printable import is_hidden

_BREAKS = r"\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029"
_BEGINS_WITH_BREAK = re.compile(rf"'*[{_BREAKS}]")
_SEPARATOR = re.compile(rf"([;{_BREAKS}])")


def escape_cell(text: str) -> str:
    """Return a text as it is put into a cell."""
    return "".join(f"'{part}" if is_run else part for part, is_run in _parts(text))


def unescape_cell(text: str) -> str:
    """Return the text that :func:`escape_cell` made a cell of."""
    # Whatever is run is run with an apostrophe more or less, too; so one was put before it.
    parts = _parts(text)
    return "".join(part[1:] if is_run and part.startswith("'") else part for part, is_run in parts)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield what may become cells, and separators, each with whether a spreadsheet would run it."""
    begins_with_break = _BEGINS_WITH_BREAK.match(text) is not None
    for place, part in enumerate(_SEPARATOR.split(text)):
        yield part, (place == 0 and begins_with_break) or _first_seen(part) in SIGNS


def _first_seen(text: str) -> str:
    """Return what comes first behind all that a spreadsheet may pass over; " " if nothing does."""
    skipped = (is_hidden(c) or c == " " or c in QUOTES for c in text)
    return next((c for c, skip in zip(text, skipped, strict=True) if not skip), " ")


def to_csv(frame: pd.DataFrame) -> str:
    """Return a frame's columns as CSV."""
    # Of line breaks, Python would put only its own in quotes.
    return _with_texts(frame, escape_cell).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame's columns as CSV."""
    write_atomically(path, to_csv(frame).encode())


def read_csv(path: Path, names: str) -> pd.DataFrame:
    """Return what was written.

    Parameters
    ----------
    names : str
        The column of names: texts, whatever they look like (``NA``, ``007``).
    """
    frame = pd.read_csv(path)
    frame[names] = pd.read_csv(path, usecols=[names], dtype=str, na_filter=False)[names]
    return _with_texts(frame, unescape_cell)


def _with_texts(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return a frame with its headings and texts changed."""

    def changed(cell: Any) -> Any:
        return change(cell) if isinstance(cell, str) else cell

    found = frame.rename(columns=lambda name: change(str(name)))
    for place, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            found.isetitem(place, frame.iloc[:, place].map(changed).array)
    return found
