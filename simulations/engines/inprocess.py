"""Everything in this process, one node after the other: tests, debugging, one GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from pudica.simulations.engines.local import (
    LocalGrid,
    client_context,
    error_reply,
    run_config,
    server_context,
)
from pudica.strategies.core.experiment import Experiment


class InProcessGrid(LocalGrid):
    """Calls the ClientApp directly, one message per pull.

    Parameters
    ----------
    app : ClientApp
    partitions : int
    config : dict
        The run configuration.
    """

    def __init__(self, app: ClientApp, partitions: int, config: dict[str, str]) -> None:
        super().__init__(partitions)
        self._app = app
        self._contexts = {
            node: client_context(node, partition, partitions, config)
            for node, partition in self.partition.items()
        }
        self._waiting: deque[tuple[str, Message]] = deque()
        self._replies: dict[str, Message] = {}

    def _hand(self, message: Message, identifier: str) -> None:
        self._waiting.append((identifier, message))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let one node answer, and return the asked-for replies that are there."""
        if self._waiting:
            identifier, message = self._waiting.popleft()
            self._replies[identifier] = self._answer(message)
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return error_reply(message, error)


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment in this process."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = run_config(experiment, directory, "inprocess")
    grid = InProcessGrid(client_app, len(experiment.names()), config)
    server_app(grid, server_context(config))
