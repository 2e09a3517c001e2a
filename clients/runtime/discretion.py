"""What a server is told of failures: not what the node's own files and images are like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARN

from flwr.common.logger import log

from pudica.clients.data.errors import DataError
from pudica.clients.runtime.lifetime import current_memory
from pudica.models.files import DISK_FULL

UNUSABLE_DATA = "this node's data or files can't be used; its own log says why"
PRIVATE = (DataError, OSError)
"""Errors that may quote labels, or name files."""


@contextmanager
def keep_to_itself(kinds: tuple[type[Exception], ...] = PRIVATE) -> Iterator[None]:
    """Log errors on the node, and raise one that says nothing; on Pudica's engines, raise them.

    Parameters
    ----------
    kinds : tuple of type of Exception
        By default those that may quote labels, or name files.

    Raises
    ------
    RuntimeError
        In their place.
    """
    try:
        yield
    except kinds as error:
        if current_memory() is not None or _is_full_disk(error):
            raise
        log(WARN, "%s: %s", type(error).__name__, error)
        raise RuntimeError(UNUSABLE_DATA) from error


def _is_full_disk(error: Exception) -> bool:
    """Tell whether an error says no more than that a disk is full."""
    return isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None
