"""The time, as records say it."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp() -> str:
    """Return the time, to the second, with its zone (ISO 8601, UTC)."""
    return datetime.now(UTC).isoformat(timespec="seconds")
