"""The named nodes of a run: requests to them, and their replies as far as they make sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from copy import copy
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from pudica.strategies.core.experiment import ClientConfig
from pudica.strategies.core.pending import LoggingObserver, content_of, count_once, describe_error
from pudica.strategies.core.recorder import MemoryRecorder, Recorder
from pudica.strategies.core.registry import NodeRegistry, RegisteredNode
from pudica.strategies.core.reliable_grid import ReliableGrid
from pudica.strategies.core.streams import MessageStream, MessageStreamBatched

T = TypeVar("T")
Read = Callable[[str, RecordDict], T]


class Cohort:
    """Nodes by name, on a grid that copes with their failures.

    A reply that makes no sense counts as a dropout: whoever reads it raises KeyError, TypeError
    or ValueError, so nothing may have changed by then.

    Parameters
    ----------
    grid : ReliableGrid
    recorder : MemoryRecorder
    nodes : dict of str to int
        Node id by name. Replies are handed on in this order, not in that of arrival.
    registry : NodeRegistry or None
        Of a deployment; None in a simulation.
    """

    def __init__(
        self,
        grid: ReliableGrid,
        recorder: MemoryRecorder,
        nodes: Mapping[str, int] | None = None,
        registry: NodeRegistry | None = None,
    ) -> None:
        self.grid = grid
        self.recorder = recorder
        self.registry = registry
        self.nodes = dict(nodes or {})

    @classmethod
    def on(
        cls,
        grid: Grid,
        client: ClientConfig,
        recorder: MemoryRecorder,
        registry: NodeRegistry | None = None,
    ) -> Cohort:
        """Return a cohort, still without nodes, as an experiment's ``client`` section says.

        Of a grid that copes with failures already, the section and the recorder take the place of
        what it leaves open; the grid itself stays as it is, and counts what happens.
        """
        reliable = copy(grid) if isinstance(grid, ReliableGrid) else ReliableGrid(grid)
        if reliable.timeout is None:
            reliable.timeout = client.timeout
        if reliable.patience is None:
            reliable.patience = client.patience
        if reliable.is_removed is None and registry:
            reliable.is_removed = registry.is_removed
        if isinstance(reliable.observer, LoggingObserver):
            reliable.observer = recorder
        return cls(reliable, recorder, registry=registry)

    def is_on(self, grid: Grid) -> bool:
        """Tell whether messages travel on this grid."""
        return (grid.grid if isinstance(grid, ReliableGrid) else grid) is self.grid.grid

    @property
    def nodes(self) -> dict[str, int]:
        """Node id by name."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: dict[str, int]) -> None:
        self._nodes = nodes
        self.grid.names |= {node: name for name, node in nodes.items()}

    @property
    def run_recorder(self) -> Recorder:
        """The recorder, which has a directory: an experiment's always has."""
        assert isinstance(self.recorder, Recorder)
        return self.recorder

    @property
    def registered(self) -> list[RegisteredNode]:
        """The nodes that are registered with a deployment; none in a simulation."""
        return self.registry.nodes() if self.registry else []

    @property
    def dropouts(self) -> dict[str, int]:
        """How often each node dropped out, until somebody clears it."""
        return self.grid.dropouts

    # ----------------------------------------------------------------- three ways to exchange

    def send_and_receive(
        self, kind: str, requests: Mapping[str, RecordDict], read: Read[T]
    ) -> dict[str, T]:
        """Send each node its request and return, in node order, what the replies say.

        Parameters
        ----------
        kind : str
            The messages' type.
        requests : mapping of str to RecordDict
        read : callable
            Makes sense of a reply, given the node's name and what the reply holds.
        """
        replies = self.grid.send_and_receive(self.messages(kind, requests))
        values = dict(self.read(replies, kind, read))
        return {name: values[name] for name in self.nodes if name in values}

    def stream(self, kind: str, requests: Mapping[str, RecordDict], read: Read[T]) -> Stream[T]:
        """Talk with all nodes at once, each at its own pace; iterate over names and values.

        >>> stream = cohort.stream(kind, first, read)
        >>> for name, value in stream:
        ...     stream.send({name: next_request(value)})
        """
        stream = self.grid.stream(self.messages(kind, requests))
        return Stream(self, kind, read, stream)

    def stream_batched(
        self, kind: str, requests: Mapping[str, RecordDict], read: Read[T]
    ) -> StreamBatched[T]:
        """As :meth:`stream`; iterate over what came meanwhile, by name, also where nothing did."""
        stream = self.grid.stream_batched(self.messages(kind, requests))
        return StreamBatched(self, kind, read, stream)

    def messages(self, kind: str, requests: Mapping[str, RecordDict]) -> list[Message]:
        """Return requests as messages to nodes."""
        return [Message(content, self.nodes[name], kind) for name, content in requests.items()]

    def read(
        self, replies: Iterator[Message] | list[Message], kind: str, read: Read[T]
    ) -> Iterator[tuple[str, T]]:
        """Yield name and value of each reply that makes sense."""
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                if count_once(reply):  # Flower's own grids count none.
                    self.grid.reject(node, describe_error(reply))
            elif (value := self._read_reply(kind, reply, read)) is not None:
                yield self.grid.name_of(node), value

    def _read_reply(self, kind: str, reply: Message, read: Read[T]) -> T | None:
        """Return what a reply says; None if it makes no sense."""
        node = reply.metadata.src_node_id
        try:
            return read(self.grid.name_of(node), content_of(reply))
        except (KeyError, TypeError, ValueError) as error:
            missing = isinstance(error, KeyError)
            reason = f"no '{error.args[0]}' in its reply" if missing else str(error)
            self.grid.reject(node, f"{kind}: {reason}")
            return None

    def beside(self, nodes: Mapping[str, int], timeout: float | None = None) -> Cohort:
        """Return other nodes of the same grid, whose failures count apart.

        Parameters
        ----------
        timeout : float, optional
            Seconds for a reply, in place of the grid's.
        """
        grid = ReliableGrid(
            self.grid.grid,
            timeout=timeout or self.grid.timeout,
            patience=self.grid.patience,
            is_removed=self.grid.is_removed,
            observer=self.grid.observer,
        )
        return Cohort(grid, self.recorder, nodes, self.registry)

    # --------------------------------------------------------------------------- its state

    def reject(self, name: str, reason: str) -> None:
        """Count a node as dropped out of an exchange, and say why, once an epoch."""
        self.grid.reject(self.nodes[name], reason)

    def leave_out(self, name: str, reason: str) -> None:
        """Reject a node, and ask it nothing any more."""
        self.reject(name, reason)
        del self.nodes[name]

    def reset_failures(self) -> None:
        """Give nodes that were given up one more chance, as when an epoch begins."""
        self.grid.reset_failures()

    def require_min_replies(self, minimum: int, replied: int, kind: str) -> None:
        """Raise TooFewParticipants if fewer than ``minimum`` replied; see the grid's method."""
        self.grid.require_min_replies(minimum, replied, kind)

    def deadline(
        self, is_over: Callable[[], bool], endless: bool = False
    ) -> AbstractContextManager[None]:
        """End exchanges inside once something is over; see :meth:`ReliableGrid.deadline`."""
        return self.grid.deadline(is_over, endless)

    @property
    def traffic(self) -> dict[str, list[int]]:
        """Bytes of payload sent to and received from each node."""
        return self.grid.traffic


class Stream(Generic[T]):
    """What nodes say, each as it comes; see :meth:`Cohort.stream`."""

    def __init__(self, cohort: Cohort, kind: str, read: Read[T], stream: MessageStream) -> None:
        self._cohort = cohort
        self._kind = kind
        self._read = read
        self._stream = stream

    def send(self, requests: Mapping[str, RecordDict]) -> None:
        """Send the next requests, or the first to others."""
        if requests:
            self._stream.send(self._cohort.messages(self._kind, requests))

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Yield name and value until no reply is outstanding."""
        return self._cohort.read(iter(self._stream), self._kind, self._read)


class StreamBatched(Stream[T]):
    """What nodes say, in batches; see :meth:`Cohort.stream_batched`."""

    _stream: MessageStreamBatched

    @property
    def outstanding(self) -> int:
        """How many replies are still to come."""
        return self._stream.outstanding

    def __iter__(self) -> Iterator[dict[str, T]]:  # type: ignore[override]
        """Yield values by name until no reply is outstanding."""
        for replies in self._stream:
            yield dict(self._cohort.read(replies, self._kind, self._read))
