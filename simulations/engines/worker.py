"""The Ray actor. It imports little, since every worker process pays for imports when it starts."""

from __future__ import annotations

import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pudica.simulations.engines.local import build_client_context, build_error_reply


class Worker:
    """Ray actor that runs the ClientApp for the nodes assigned to it."""

    def __init__(self, app: ClientApp, partitions: int, config: dict[str, str]) -> None:
        self._app = app
        self._partitions = partitions
        self._config = config
        self._contexts: dict[int, Context] = {}

    def answer(self, *requests: tuple[Message, int]) -> list[Message] | Message:
        """Return each node's reply, or an error message if its ClientApp raised.

        Parameters
        ----------
        *letters : (Message, int)
            A message, and the partition of the node that it is addressed to.
        """
        replies = [self._answer(message, partition) for message, partition in requests]
        return replies if len(replies) > 1 else replies[0]

    def _answer(self, message: Message, partition: int) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            self._contexts[node] = build_client_context(
                node, partition, self._partitions, self._config
            )
        try:
            return self._app(message, self._contexts[node])
        except Exception as error:
            return build_error_reply(message, error)

    def process_id(self) -> int:
        """Return the actor's process id."""
        return os.getpid()
