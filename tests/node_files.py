"""``node.yaml`` as a participant might write it."""

from pathlib import Path
from typing import Any

import yaml

SAID = {
    "name": "someone",
    "server": "127.0.0.1:8100",
    "certificate": "ca.crt",
    "private_key": "node.key",
    "vault": "vault",
    "systems": ["themis"],
}


def node_file(path: Path, **settings: Any) -> Path:
    """Write the settings of a deployed node."""
    path.write_text(yaml.safe_dump({**SAID, **settings}))
    return path
