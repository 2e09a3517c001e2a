"""What the nodes of a simulation keep in memory; imports little, for quick workers."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any


class Memory:
    """Of nodes that live as long as their run, each always in the same process.

    It is the grid's, and gone with it: what another one's nodes kept is nobody's here, though runs
    and nodes may have the same names.
    """

    def __init__(self) -> None:
        self.vaults: dict[tuple[str, int], Any] = {}  # by run and node id
        self.roles: dict[tuple[Any, str, int], Any] = {}  # by app, run and node id


_current: ContextVar[Memory | None] = ContextVar("memory", default=None)


class remember_in:  # noqa: N801
    """Let nodes that answer within the context keep there what has no other place."""

    __slots__ = ("_memory", "_token")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __enter__(self) -> None:
        self._token = _current.set(self._memory)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def current_memory() -> Memory | None:
    """Return where the node at work keeps things; None outside Pudica's own engines."""
    return _current.get()
