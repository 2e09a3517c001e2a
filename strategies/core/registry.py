"""Who is registered with a deployment, as its organiser's folder says.

A run's configuration goes to every node, so nothing that nodes are not to know can be in it:
where the organiser's folder is, the ServerApp is told by an environment variable.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

HOME = "PUDICA_ORGANISER"
"""The environment variable that names the organiser's folder."""
ROSTER = "nodes.json"


class Registered(NamedTuple):
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


def fingerprint_of(public_key: bytes) -> str:
    """Return a public key, PEM as Flower's messages carry it, as a short text."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def home() -> Path | None:
    """Return the organiser's folder; None in a simulation."""
    place = os.environ.get(HOME)
    return Path(place) if place else None


def registered(folder: Path | None) -> list[Registered]:
    """Return the nodes in the order in which they were registered; none in a simulation."""
    if folder is None or not (folder / ROSTER).is_file():
        return []
    return [Registered(**entry) for entry in json.loads((folder / ROSTER).read_text())]


def is_removed(node: int) -> bool:
    """Tell whether a node of a deployment, by Flower's id, is registered no more."""
    entries = registered(home())
    return bool(entries) and node not in {entry.node for entry in entries}


def placed(folder: Path | None, path: str) -> str:
    """Return a path of a run's configuration, which in a deployment is below that folder."""
    return str(folder / path) if folder and path else path
