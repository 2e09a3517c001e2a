"""The Ray actor. It imports little: every worker process pays for it at its start."""

from __future__ import annotations

import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pudica.simulations.engines.local import client_context, error_reply


class Worker:
    """The actor: answers for the nodes that live on it."""

    def __init__(self, app: ClientApp, partitions: int, config: dict[str, str]) -> None:
        self._app = app
        self._partitions = partitions
        self._config = config
        self._contexts: dict[int, Context] = {}

    def answer(self, *letters: tuple[Message, int]) -> list[Message] | Message:
        """Return each node's reply, or an error message with what it raised.

        Parameters
        ----------
        *letters : (Message, int)
            A message, and the partition of the node that it is for.
        """
        replies = [self._answer(message, partition) for message, partition in letters]
        return replies if len(replies) > 1 else replies[0]

    def _answer(self, message: Message, partition: int) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            self._contexts[node] = client_context(node, partition, self._partitions, self._config)
        try:
            return self._app(message, self._contexts[node])
        except Exception as error:
            return error_reply(message, error)

    def process(self) -> int:
        """Return the actor's process id."""
        return os.getpid()
