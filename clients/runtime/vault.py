"""What a node keeps to itself: a directory that nobody else reads, mode 0700, files 0600.

Model weights, optimiser state and keys live here and nowhere else: never in a message, and
never in ``context.state``, which travels with every message of a Flower deployment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context

from pudica.clients.runtime.lifetime import current_memory
from pudica.clients.runtime.node import NodeConfig
from pudica.models.errors import RequestError
from pudica.models.files import (
    DISK_FULL,
    load_tensors,
    serialise_tensors,
    try_lock,
    write_atomically,
)

LASTING = ".lasting"
"""Beside the vaults of runs, whose names do not begin with a dot."""
TENSORS = ".safetensors"


class AnyVault(ABC):
    """What a node keeps to itself, by name; in a directory or in memory."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[bool]:
        """Keep other processes of this node out; tell whether there are none."""

    @abstractmethod
    def write(self, name: str, data: bytes, durable: bool = False) -> None:
        """Put ``data`` under ``name``; durably, if it has to outlive a power cut."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return what lies under ``name``, or None."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove what lies under ``name``."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names under which something lies."""

    @abstractmethod
    def save(self, name: str, tensors: dict[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put tensors and a JSON note under ``name``."""

    @abstractmethod
    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and note, or None if there are none."""

    def drop(self, name: str) -> None:
        """Remove the tensors and the note under ``name``."""
        self.delete(name + TENSORS)

    def saved(self) -> list[str]:
        """Return the names under which there are tensors."""
        return [name.removesuffix(TENSORS) for name in self.names() if name.endswith(TENSORS)]

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


class Vault(AnyVault):
    """One node's private directory.

    Parameters
    ----------
    root : Path
        Created with mode 0700 if it is not there.
    lasting : Path, optional
        Where a node keeps what outlives its runs; by default beside the vaults of all runs, under
        this one's name.

    Raises
    ------
    RequestError
        If the directory can't be made or written.
    """

    def __init__(self, root: Path, lasting: Path | None = None) -> None:
        self.root = root
        self.lasting = lasting or root.parent.parent / LASTING / root.name
        try:
            for folder in (root.parent.parent, root.parent, root):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
        except OSError as error:
            raise RequestError(
                f"vault: can't make the directory {root}: {error.strerror}"
            ) from error

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other processes out, as long as this one lives; tell whether there are none."""
        with (self.root / ".lock").open("a") as file:
            yield try_lock(file)

    def write(self, name: str, data: bytes, durable: bool = False) -> None:
        """Put ``data`` under ``name``; OSError if there is no room, and the old data stay."""
        try:
            self._write(name, data, durable)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                error.errno,
                f"no room on this node's disk for '{name}' in its vault "
                f"({os.strerror(error.errno)}); nothing that was kept is lost: make room",
            ) from error

    def _write(self, name: str, data: bytes, durable: bool) -> None:
        new, old = _digest(data), self._seals(name)
        if len(old) > 1:  # of a write that was cut off
            path = self.root / name
            old = [_digest(path.read_bytes())] if path.exists() else []
        # First a seal of both: a kill leaves the old file or the new one, and it fits.
        self._put_seals(name, [new, *old], durable)
        write_atomically(self.root / name, data, 0o600, durable)
        self._put_seals(name, [new])

    def read(self, name: str) -> bytes | None:
        """Return what lies under ``name``, or None; RuntimeError if it isn't what was put there."""
        path = self.root / name
        if not path.exists():
            return None
        data = path.read_bytes()
        if _digest(data) not in self._seals(name):
            raise RuntimeError(
                f"'{name}' in this node's vault is damaged; give it back as it was, or delete it "
                "and lose what is in it"
            )
        return data

    def delete(self, name: str) -> None:
        """Remove what lies under ``name``."""
        (self.root / name).unlink(missing_ok=True)
        self._seal(name).unlink(missing_ok=True)

    def _seal(self, name: str) -> Path:
        return self.root / f".{name}.seal"

    def _put_seals(self, name: str, seals: list[str], durable: bool = False) -> None:
        write_atomically(self._seal(name), json.dumps(seals).encode(), 0o600, durable)

    def _seals(self, name: str) -> list[str]:
        """Return the digests of what may lie under ``name``."""
        path = self._seal(name)
        return list(json.loads(path.read_bytes())) if path.exists() else []

    def names(self) -> list[str]:
        """Return the names under which something lies."""
        return [path.name for path in self.root.iterdir() if not path.name.startswith(".")]

    def save(self, name: str, tensors: dict[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put tensors and a JSON note under ``name``."""
        self.write(name + TENSORS, serialise_tensors(tensors, note))

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return tensors and note, or None if there are none; see :meth:`read`."""
        if self.read(name + TENSORS) is None:
            return None
        return load_tensors(self.root / (name + TENSORS))


class MemoryVault(AnyVault):
    """A vault in memory: of a node that lives as long as its run does."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def alone(self) -> AbstractContextManager[bool]:
        """Tell that there is no other process of this node."""
        return nullcontext(True)

    def write(self, name: str, data: bytes, durable: bool = False) -> None:  # noqa: ARG002
        """Put ``data`` under ``name``."""
        self._kept[name] = data

    def read(self, name: str) -> bytes | None:
        """Return what lies under ``name``, or None."""
        return self._kept.get(name)

    def delete(self, name: str) -> None:
        """Remove what lies under ``name``."""
        self._kept.pop(name, None)

    def names(self) -> list[str]:
        """Return the names under which something lies."""
        return list(self._kept)

    def save(self, name: str, tensors: dict[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Put copies of tensors and a note under ``name``."""
        copies = {key: value.detach().clone() for key, value in tensors.items()}
        self._kept[name + TENSORS] = copies, dict(note)

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return copies, which may be changed in place, or None."""
        if name + TENSORS not in self._kept:
            return None
        tensors, note = self._kept[name + TENSORS]
        return {key: value.clone() for key, value in tensors.items()}, dict(note)


UNIQUE = re.compile(r".+-[0-9a-f]{8}")
"""Names that strategies give to their runs, with a nonce: resumed on another grid, it is the same.

Of any other name, two grids of a process may have a run each.
"""
_in_memory: dict[tuple[str, int], MemoryVault] = {}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check_run(run: str) -> str:
    """Return a run's name, which is a folder's; ValueError if it might lead elsewhere."""
    if Path(run).name != run or not run or run.startswith("."):
        raise ValueError(f"'{run}' is no name of a run")
    return run


def vault_path(context: Context, run: str) -> Path:
    """Return the place of the vault of a message's node: a directory per run and node.

    It is in ``vault`` of a deployed node's ``node.yaml``, or of a simulation's run configuration,
    else in ``~/.local/share/pudica/vault``.
    """
    check_run(run)
    if node := NodeConfig.of(context):
        return node.vault / run / node.name
    place = context.run_config.get("vault")
    root = Path(str(place)) if place else Path.home() / ".local/share/pudica/vault"
    return root / run / f"node-{context.node_config.get('partition-id', context.node_id)}"


def own_vault(context: Context, run: str) -> AnyVault:
    """Return where a node of somebody's own app keeps what must outlive a message.

    In memory, if the grid's nodes live as long as the run and no other place is named; else as
    :func:`vault_of`.
    """
    memory = current_memory()
    if memory and not is_deployed(context) and not context.run_config.get("vault"):
        vaults = _in_memory if UNIQUE.fullmatch(run) else memory.vaults
        return vaults.setdefault((check_run(run), context.node_id), MemoryVault())
    return vault_of(context, run)


def vault_of(context: Context, run: str) -> Vault:
    """Return the vault of the node that a message reached, at :func:`vault_path`.

    What a deployed node keeps beyond its runs hangs on its folder, not on what it is called.
    """
    place = vault_path(context, run)
    return Vault(place, deployed_lasting(place.parent.parent) if is_deployed(context) else None)


def deployed_lasting(vaults: Path) -> Path:
    """Return where a deployed node, whose ``vault`` this is, keeps what outlives its runs."""
    return vaults / LASTING / "node"


def is_deployed(context: Context) -> bool:
    """Tell whether a message reached a deployed node, which has settings of its own."""
    return NodeConfig.of(context) is not None
