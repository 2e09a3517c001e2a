"""The error of this package."""

from pudica.models.errors import RequestError


class DataError(RequestError):
    """The data asked for cannot be had: the message says what, where and what is allowed."""
