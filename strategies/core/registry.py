"""Who is registered with a deployment, as its organiser's folder says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

REGISTRY = "nodes.json"


class RegisteredNode(NamedTuple):
    """A node that may take part.

    Attributes
    ----------
    name : str
    node : int
        Flower's id of it, which stands for its key.
    fingerprint : str
        Of its public key.
    since : str
        When it was registered, ISO 8601.
    """

    name: str
    node: int
    fingerprint: str
    since: str


class NodeRegistry:
    """The nodes of an organiser's folder, as they are now: they may come and go during a run.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / REGISTRY

    def nodes(self) -> list[RegisteredNode]:
        """Return the nodes in the order in which they were registered."""
        if not self.path.is_file():
            return []
        entries = json.loads(self.path.read_text(encoding="utf-8"))
        return [RegisteredNode(**entry) for entry in entries]

    def is_removed(self, node: int) -> bool:
        """Tell whether a node, by Flower's id, is registered no more."""
        nodes = self.nodes()
        return bool(nodes) and node not in {entry.node for entry in nodes}


def key_fingerprint(public_key: bytes) -> str:
    """Return a public key, PEM as Flower's messages carry it, as a short text."""
    return hashlib.sha256(public_key).hexdigest()[:32]
