"""Whether the nodes of this process live as long as a run; imports nothing, for quick workers."""

_lasts = False


def keep_in_memory() -> None:
    """Let nodes of this process keep in memory what has no other place.

    For engines whose nodes live as long as the run, each always in the same process.
    """
    global _lasts
    _lasts = True


def process_lasts() -> bool:
    """Return whether :func:`keep_in_memory` was called."""
    return _lasts
