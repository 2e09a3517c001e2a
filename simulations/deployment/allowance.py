"""What one node may send through the gate: how much, how often, and how many things at a time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

# SuperNodes wait a moment after this one and ask again; most others end them. So would what a
# SuperLink says whose database is locked for a moment, as it is under load.
TRY_LATER = 503
WINDOW_SECONDS = 60.0


class Limits(NamedTuple):
    """How much one node may send.

    Attributes
    ----------
    request_bytes : int
        In one request; Flower cuts messages into pieces of 5 MiB.
    message_bytes : int
        In answer to one message. For each node the gate holds that much in memory, and some times
        as much while it reads one.
    bytes_a_minute, requests_a_minute : int
    open_requests : int
        At once.
    """

    request_bytes: int = 2**23
    message_bytes: int = 2**30
    bytes_a_minute: int = 2**32
    requests_a_minute: int = 6000
    open_requests: int = 16


class Refused(Exception):
    """A request that is not let through.

    Parameters
    ----------
    status : int
        Of HTTP.
    why : str
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class PerMinute:
    """Counts that begin again each minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, of: str, more: int) -> int:
        """Count, and return what this minute has."""
        if time.monotonic() - self._since > WINDOW_SECONDS:
            self._since = time.monotonic()
            self._counts.clear()
        self._counts[of] += more
        return self._counts[of]


class Allowance:
    """What nodes have sent in the last minute, and ask at this moment.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._requests = PerMinute()
        self._bytes = PerMinute()
        self._open: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def request(self, node: str) -> Iterator[None]:
        """Count a request for as long as it is open.

        Raises
        ------
        Refused
            There are too many.
        """
        self.count(node)
        if self._open[node] >= self.limits.open_requests:
            raise Refused(TRY_LATER, f"'{node}' has {self._open[node]} requests open")
        self._open[node] += 1
        try:
            yield
        finally:
            self._open[node] -= 1

    def count(self, node: str) -> None:
        """Count what the SuperLink is asked for a node.

        Raises
        ------
        Refused
            It is more than it may.
        """
        most = self.limits.requests_a_minute
        if self._requests.add(node, 1) > most:
            raise Refused(TRY_LATER, f"'{node}' sends more than {most} requests a minute")

    def spend(self, node: str, size: int) -> None:
        """Count the bytes that a node sends.

        Raises
        ------
        Refused
            It is more than it may.
        """
        most = self.limits.bytes_a_minute
        if self._bytes.add(node, size) > most:
            raise Refused(TRY_LATER, f"'{node}' sends more than {most} bytes a minute")
