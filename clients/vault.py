"""What a node keeps to itself: a directory that nobody else reads, mode 0700, files 0600.

Model weights, optimiser state and keys live here and nowhere else: never in a message, and
never in ``context.state``, which travels with every message of a Flower deployment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context

from clients.node import NodeConfig
from models.errors import RequestError
from models.files import load_tensors, save_tensors, write_atomically


class Vault:
    """One node's private directory.

    Parameters
    ----------
    root : Path
        Created with mode 0700 if it is not there.

    Raises
    ------
    RequestError
        If the directory can't be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for folder in (root.parent.parent, root.parent, root):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
        except OSError as error:
            raise RequestError(
                f"vault: can't make the directory {root}: {error.strerror}"
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` under ``name``."""
        write_atomically(self.root / name, data, mode=0o600)

    def read(self, name: str) -> bytes | None:
        """Return what lies under ``name``, or None."""
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def pin(self, name: str, value: str) -> bool:
        """Keep a value the first time; return whether it still is what was kept then."""
        kept = self.read(name)
        if kept is None:
            self.write(name, value.encode())
        return kept in (None, value.encode())

    def secret(self, name: str) -> bytes:
        """Return 32 random bytes, drawn the first time and kept."""
        kept = self.read(name)
        if kept is None:
            kept = os.urandom(32)
            self.write(name, kept)
        return kept

    def delete(self, name: str) -> None:
        """Remove what lies under ``name``."""
        (self.root / name).unlink(missing_ok=True)

    def save(self, name: str, tensors: dict[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put tensors and a JSON note under ``name``."""
        save_tensors(self.root / f"{name}.safetensors", tensors, note)

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and note, or None if there are none."""
        return load_tensors(self.root / f"{name}.safetensors")


def vault_path(context: Context, run: str) -> Path:
    """Return where the vault of the node that a message reached is.

    Its place is ``vault`` of a deployed node's ``node.yaml``, in a simulation ``vault`` of the
    run's configuration, else ``~/.local/share/pudica/vault``; in there one directory per run and
    node.
    """
    if Path(run).name != run or run in ("", ".", ".."):
        raise ValueError(f"'{run}' is no name of a run")
    if node := NodeConfig.of(context):
        return node.vault / run / node.name
    place = context.run_config.get("vault")
    root = Path(str(place)) if place else Path.home() / ".local/share/pudica/vault"
    return root / run / f"node-{context.node_config.get('partition-id', context.node_id)}"
