"""The Ray actor. It imports little, since every worker process pays for imports when it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict
from ray import cloudpickle

from pudica.simulations.engines.nodes import NodeOptions, SimulatedNodes

Answer = tuple[Message, RecordDict | None]


class Worker:
    """Ray actor that runs the pickled ClientApp for the nodes assigned to it.

    It looks for modules in the search path first.
    """

    def __init__(
        self,
        app: bytes,
        partitions: int,
        config: Mapping[str, bool | float | int | str],
        options: NodeOptions,
        search_path: Sequence[str] = (),
    ) -> None:
        sys.path[:] = [*search_path, *(path for path in sys.path if path not in search_path)]
        self._nodes = SimulatedNodes(cloudpickle.loads(app), partitions, config, options)

    def restore(self, states: Mapping[int, tuple[int, RecordDict]]) -> None:
        """Take over nodes of a worker that died: by node id, the partition and the state."""
        for node, (partition, state) in states.items():
            self._nodes.add(node, partition).state = state

    def answer(self, *requests: tuple[Message, int]) -> list[Answer] | Answer:
        """Return each node's reply, and its state if that has changed.

        A request is a message, and the partition of the node that it is addressed to.
        """
        replies = [self._answer(message, partition) for message, partition in requests]
        return replies if len(replies) > 1 else replies[0]

    def _answer(self, message: Message, partition: int) -> Answer:
        node = message.metadata.dst_node_id
        before = self._nodes.add(node, partition).state
        reply = self._nodes.answer(message, partition)
        state = self._nodes.contexts[node].state
        return reply, None if state == before else state

    def process_id(self) -> int:
        """Return the actor's process id."""
        return os.getpid()
