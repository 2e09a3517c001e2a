"""To which nodes a gate delivered messages, so that nobody asks for another's."""

from __future__ import annotations

from collections import OrderedDict

from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree

from pudica.simulations.deployment.allowance import RequestRefused

MAX_REMEMBERED = 200_000


class MessageOwners:
    """Remembers to which nodes messages and their parts were delivered.

    Flower authenticates nodes, but does not check whether a message is for them: a node that knows
    a message's id could read or remove it. Objects that the gate has not seen, since it was
    restarted, are let through.
    """

    def __init__(self) -> None:
        self._nodes_by_object: OrderedDict[str, set[str]] = OrderedDict()

    def record_delivery(self, node: str, answer: PullMessagesResponse) -> None:
        """Remember what is delivered to a node."""
        for message in answer.messages_list:
            self._add(node, message.metadata.message_id)
        for tree in answer.message_object_trees:
            self._add_tree(node, tree)

    def check(self, node: str, object_id: str) -> None:
        """Check that an object was not delivered to other nodes only.

        Raises
        ------
        RequestRefused
            If it was.
        """
        if node not in self._nodes_by_object.get(object_id, {node}):
            raise RequestRefused(403, f"'{node}' asks for a message to another node")

    def _add_tree(self, node: str, tree: ObjectTree) -> None:
        self._add(node, tree.object_id)
        for child in tree.children:
            self._add_tree(node, child)

    def _add(self, node: str, object_id: str) -> None:
        self._nodes_by_object.setdefault(object_id, set()).add(node)
        self._nodes_by_object.move_to_end(object_id)
        if len(self._nodes_by_object) > MAX_REMEMBERED:
            self._nodes_by_object.popitem(last=False)
