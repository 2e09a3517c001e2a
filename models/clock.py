"""The current time in the format of records."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
