"""Rate limits of the gate: how much, how often and how many requests at once one node may send."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

# SuperNodes retry after this status, while most others make them exit. So would the response of a
# SuperLink whose database is briefly locked, as happens under load.
TRY_LATER = 503
WINDOW_SECONDS = 60.0


class RateLimits(NamedTuple):
    """Limits on what one node may send.

    Attributes
    ----------
    request_bytes : int
        Bytes per request; Flower splits messages into pieces of 5 MiB.
    message_bytes : int
        Bytes of an answer to one message. The gate holds that much in memory for each node, and a
        multiple of it while it decodes an answer.
    bytes_a_minute, requests_a_minute : int
    open_requests : int
        Requests at the same time.
    """

    request_bytes: int = 2**23
    message_bytes: int = 2**30
    bytes_a_minute: int = 2**32
    requests_a_minute: int = 6000
    open_requests: int = 16


class RequestRefused(Exception):
    """A request that the gate refuses.

    Parameters
    ----------
    status : int
        HTTP status.
    why : str
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class MinuteCounter:
    """Counters that restart every minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and return its value in the current minute."""
        if time.monotonic() - self._since > WINDOW_SECONDS:
            self._since = time.monotonic()
            self._counts.clear()
        self._counts[key] += amount
        return self._counts[key]


class RateLimiter:
    """Limits what nodes send per minute, and how many requests they have open.

    Parameters
    ----------
    limits : RateLimits
    """

    def __init__(self, limits: RateLimits) -> None:
        self.limits = limits
        self._requests = MinuteCounter()
        self._bytes = MinuteCounter()
        self._open: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def track_request(self, node: str) -> Iterator[None]:
        """Count a request as open within the context.

        Raises
        ------
        RequestRefused
            If there are too many.
        """
        self.count_request(node)
        if self._open[node] >= self.limits.open_requests:
            raise RequestRefused(TRY_LATER, f"'{node}' has {self._open[node]} requests open")
        self._open[node] += 1
        try:
            yield
        finally:
            self._open[node] -= 1

    def count_request(self, node: str) -> None:
        """Count a request to the SuperLink on behalf of a node.

        Raises
        ------
        RequestRefused
            If the node exceeds its limit.
        """
        most = self.limits.requests_a_minute
        if self._requests.add(node, 1) > most:
            raise RequestRefused(TRY_LATER, f"'{node}' sends more than {most} requests a minute")

    def count_bytes(self, node: str, size: int) -> None:
        """Count bytes that a node sends.

        Raises
        ------
        RequestRefused
            If the node exceeds its limit.
        """
        most = self.limits.bytes_a_minute
        if self._bytes.add(node, size) > most:
            raise RequestRefused(TRY_LATER, f"'{node}' sends more than {most} bytes a minute")
