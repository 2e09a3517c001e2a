"""The error of this package, and the validation of names that come with the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pudica.models.errors import RequestError
from pudica.models.naming import validate_label, validate_labels
from pudica.models.printable import escape_hidden


class DataError(RequestError):
    """The requested data are unavailable: the message says what, where and what is allowed."""


def validate_data_label(text: str, where: str) -> str:
    """Return the name of a class or a column in NFC; raise DataError if it is not valid.

    Parameters
    ----------
    where : str
        Beginning of the error message: where the name was found and what it names.
    """
    try:
        return validate_label(text)
    except ValueError as error:
        raise DataError(f"{where} {error}") from error


def validate_data_labels(texts: Sequence[str], where: str) -> list[str]:
    """Return names that must also be distinct; otherwise as :func:`validate_data_label`."""
    try:
        return validate_labels(texts)
    except ValueError as error:
        raise DataError(f"{where} {error}") from error


def join_names(names: Iterable[str]) -> str:
    """Join unvalidated names for a message, with hidden characters escaped."""
    return ", ".join(map(escape_hidden, names)) or "none"
