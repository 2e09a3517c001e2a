"""All nodes in this process, one after the other: for tests, debugging and a single GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from pudica.simulations.engines.local import LocalGrid, build_run_config, build_server_context
from pudica.simulations.engines.nodes import NodeOptions, SimulatedNodes, copy_records
from pudica.strategies.core.experiment import Experiment


class InProcessGrid(LocalGrid):
    """A grid that calls the ClientApp directly, whenever replies are pulled.

    Parameters
    ----------
    config : mapping
        The run configuration.
    eager : bool
        Let a pull answer all messages that are waiting, as if the nodes had worked in the
        background, instead of one.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        config: Mapping[str, bool | float | int | str],
        options: NodeOptions | None = None,
        eager: bool = False,
    ) -> None:
        options = options or NodeOptions()
        super().__init__(partitions, options.run_id)
        self._nodes = SimulatedNodes(app, partitions, config, options)
        self._contexts = self._nodes.contexts
        for node, partition in self.partition.items():
            self._nodes.add(node, partition)
        self._eager = eager
        self._waiting: deque[tuple[str, Message]] = deque()
        self._replies: dict[str, Message] = {}

    def _dispatch(self, message: Message, identifier: str) -> None:
        # Strategies give the same records to all nodes, and handlers may change what they get.
        message.content = copy_records(message.content)
        self._waiting.append((identifier, message))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Process messages, and return those of the requested replies that are available."""
        with self._lock:
            while self._eager and self._waiting:
                self._answer_next()
            return self._receive(set(message_ids))

    def _receive(self, identifiers: Collection[str]) -> list[Message]:
        with self._lock:
            if self._waiting:
                self._answer_next()
            return [self._replies.pop(i) for i in list(self._replies) if i in identifiers]

    def _answer_next(self) -> None:
        identifier, message = self._waiting.popleft()
        self._replies[identifier] = self._answer(message)

    def _answer(self, message: Message) -> Message:
        return self._nodes.answer(message, self.partition[message.metadata.dst_node_id])


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment in this process."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = build_run_config(experiment, directory, "inprocess")
    grid = InProcessGrid(client_app, len(experiment.names()), config)
    server_app(grid, build_server_context(config))
