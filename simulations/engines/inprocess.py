"""All nodes in this process, one after the other: for tests, debugging and a single GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp

from pudica.clients.runtime.vault import keep_in_memory
from pudica.simulations.engines.local import (
    LocalGrid,
    build_client_context,
    build_error_reply,
    build_run_config,
    build_server_context,
)
from pudica.strategies.core.experiment import Experiment


class InProcessGrid(LocalGrid):
    """A grid that calls the ClientApp directly, one message per pull.

    Parameters
    ----------
    app : ClientApp
    partitions : int
    config : dict
        The run configuration.
    """

    def __init__(self, app: ClientApp, partitions: int, config: dict[str, str]) -> None:
        super().__init__(partitions)
        keep_in_memory()
        self._app = app
        self._contexts = {
            node: build_client_context(node, partition, partitions, config)
            for node, partition in self.partition.items()
        }
        self._waiting: deque[tuple[str, Message]] = deque()
        self._replies: dict[str, Message] = {}

    def _dispatch(self, message: Message, identifier: str) -> None:
        self._waiting.append((identifier, message))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Process one message, and return those of the requested replies that are available."""
        if self._waiting:
            identifier, message = self._waiting.popleft()
            self._replies[identifier] = self._answer(message)
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return build_error_reply(message, error)


def run(experiment: Experiment, directory: Path) -> None:
    """Run the experiment in this process."""
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    config = build_run_config(experiment, directory, "inprocess")
    grid = InProcessGrid(client_app, len(experiment.names()), config)
    server_app(grid, build_server_context(config))
