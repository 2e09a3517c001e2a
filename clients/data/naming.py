"""Names that come with data: of classes and columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pudica.clients.data.errors import DataError
from pudica.models.naming import validate_label, validate_labels
from pudica.models.printable import escape_hidden


def validate_data_label(text: str, where: str) -> str:
    """Return a class's or a column's name as it may stand.

    Parameters
    ----------
    where : str
        It is, and what it is of: the beginning of the message.

    Raises
    ------
    DataError
        As :func:`~pudica.models.naming.validate_label`.
    """
    try:
        return validate_label(text)
    except ValueError as error:
        raise DataError(f"{where} {error}") from error


def validate_data_labels(texts: Sequence[str], where: str) -> list[str]:
    """Return names of which no two are the same, as they may stand; otherwise as above.

    Raises
    ------
    DataError
        As :func:`~pudica.models.naming.validate_labels`.
    """
    try:
        return validate_labels(texts)
    except ValueError as error:
        raise DataError(f"{where} {error}") from error


def join_names(names: Iterable[str]) -> str:
    """Return names that nobody has checked, one after the other, as a message has them."""
    return ", ".join(map(escape_hidden, names)) or "none"
