"""The error of this package."""

from pudica.models.errors import RequestError


class DataError(RequestError):
    """The requested data are unavailable: the message says what, where and what is allowed."""
