"""What lies in a node's vault is what was put there."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import pudica.clients.runtime.vault
from pudica.clients.runtime.vault import Vault

WEIGHTS = {"w": torch.arange(6.0)}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault" / "run" / "node")


def test_what_was_kept_comes_back_and_is_nobody_elses(vault: Vault) -> None:
    assert vault.load("model") is None
    vault.save("model", WEIGHTS, {"epoch": 3})
    tensors, note = vault.load("model") or ({}, {})
    assert torch.equal(tensors["w"], WEIGHTS["w"])
    assert note == {"epoch": 3}
    for path in vault.root.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    vault.delete("model.safetensors")
    assert vault.load("model") is None
    assert not list(vault.root.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "unsealed"])
def test_a_damaged_file_is_named_and_not_used(vault: Vault, damage: str) -> None:
    vault.save("model", WEIGHTS, {})
    path = vault.root / "model.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "unsealed":
        (vault.root / ".model.safetensors.seal").unlink()
    else:
        data[-1] ^= 1
        path.write_bytes({"flip": data, "cut": data[:-8], "empty": b""}[damage])
    with pytest.raises(RuntimeError, match=r"'model\.safetensors' in this node's vault is damaged"):
        vault.load("model")
    vault.save("model", WEIGHTS, {})
    assert vault.load("model")


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.write("note", b"old")
    honest = pudica.clients.runtime.vault.write_atomically
    for moment in (0, 1, 1, 2, 3):
        left = iter([True] * moment + [False])

        def killed(*arguments: Any, left: Any = left, **options: Any) -> None:
            if not next(left):
                raise KeyboardInterrupt
            honest(*arguments, **options)

        monkeypatch.setattr(pudica.clients.runtime.vault, "write_atomically", killed)
        if moment < 3:
            with pytest.raises(KeyboardInterrupt):
                vault.write("note", b"new")
        else:
            vault.write("note", b"new")
        assert vault.read("note") == (b"old" if moment < 2 else b"new")
