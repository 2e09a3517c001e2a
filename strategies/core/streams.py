"""Conversations with several nodes at once, each at its own pace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flwr.app import Message

if TYPE_CHECKING:
    from pudica.strategies.core.reliable_grid import ReliableGrid


class MessageStream:
    """The replies of a conversation, each as it comes; see :meth:`ReliableGrid.stream`."""

    def __init__(
        self, grid: ReliableGrid, messages: Iterable[Message], timeout: float | None
    ) -> None:
        self._grid = grid
        self._timeout = timeout
        self._pending, refused = grid._open(messages, timeout)
        self._settled = list(refused.values())

    @property
    def outstanding(self) -> int:
        """How many replies are still to come."""
        return len(self._pending)

    def send(self, messages: Iterable[Message]) -> None:
        """Send more messages, whose replies join the stream."""
        pending, refused = self._grid._send(messages, self._timeout)
        self._pending |= pending
        self._settled += refused.values()

    def __iter__(self) -> Iterator[Message]:
        """Yield replies until none is outstanding; some carry an error, as a dropout's does."""
        while self._pending or self._settled:
            while self._settled:
                yield self._settled.pop(0)
            if self._pending:
                self._settled += self._grid._poll(self._pending).values()


class MessageStreamBatched(MessageStream):
    """The same in lists; see :meth:`ReliableGrid.stream_batched`."""

    def __iter__(self) -> Iterator[list[Message]]:  # type: ignore[override]
        """Yield lists of replies, empty ones too, until none is outstanding."""
        while self._pending or self._settled:
            settled, self._settled = self._settled, []
            if self._pending and not settled:
                settled = list(self._grid._poll(self._pending).values())
            yield settled
