"""Names that come with the data: class names and column names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pudica.clients.data.errors import DataError
from pudica.models.naming import validate_label, validate_labels
from pudica.models.printable import escape_hidden


def validate_data_label(text: str, where: str) -> str:
    """Validate the name of a class or a column, and return it normalised.

    Parameters
    ----------
    where : str
        Beginning of the error message: where the name was found and what it names.

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
    """Validate names that must be distinct; otherwise as :func:`validate_data_label`.

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
    """Join unvalidated names for a message, with hidden characters escaped."""
    return ", ".join(map(escape_hidden, names)) or "none"
