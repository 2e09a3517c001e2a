"""A shield as a Flower client mod: in front of an app that knows nothing of shields."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from pudica.clients.runtime.role import reply_once, run_of
from pudica.clients.runtime.vault import AnyVault, own_vault
from pudica.clients.shields.base import Shield
from pudica.models.errors import RequestError

SECRET = "secret"
App = Callable[[Message, Context], Message]


class ShieldMod:
    """Protects one array of every reply, and undoes the shield on an array of the next message.

    Register it where the array leaves: ``@app.query("features", mods=[ShieldMod(shield)])``. A
    reply that carries arrays but not this one is refused, so that nothing leaves unprotected under
    another name. A reply without arrays passes.

    Noise and keys come from the system's randomness. What a shield with a grid releases travels as
    integers; ``shield.grid.to_values(integers)`` turns them into values. Everything else travels as
    float32.

    Parameters
    ----------
    shield : Shield
        It serves all nodes of a process, whose arrays must have one shape.
    array : str
        Name of the array to protect, of shape (B, …).
    restored : str
        Name of the array that comes back, if the shield has an inverse, such as ``Mixing``. A
        message without it passes.

    Notes
    -----
    The secret that undoes a shield lies in the node's own vault until the next message: in memory
    where processes last, as on Pudica's engines, else in a directory that only this user may read
    (``vault`` in the run's configuration, or ``~/.local/share/pudica/vault``). It is never in a
    message, nor in ``context.state``, which leaves the node with every message. A node keeps one
    secret at a time. It is deleted before it is used, and the next reply replaces it, so none is
    used twice. A message that a :class:`.ReliableGrid` with ``patience`` repeats gets the same
    reply again, not another release.
    """

    def __init__(self, shield: Shield, array: str = "features", restored: str = "outputs") -> None:
        if not isinstance(shield, Shield):
            raise RequestError(
                f"ShieldMod: shield must be a Shield of pudica.clients.shields, is "
                f"{type(shield).__name__}"
            )
        if shield.has_penalty():
            raise RequestError(
                f"ShieldMod: {type(shield).__name__} adds to the loss of a front, and a mod trains "
                "none; give it to an Edge"
            )
        for name, value in (("array", array), ("restored", restored)):
            if not isinstance(value, str) or not value:
                raise RequestError(f"ShieldMod: {name} must be the name of an array, is {value!r}")
        self.shield = shield
        self.array = array
        self.restored = restored

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Answer a message by the app behind, through the shield."""
        # Apart from the app's own vault, which the app may lock while it answers.
        run = f"{run_of(context)}-shield-{quote(self.array, safe='')}"

        def content() -> RecordDict:
            vault = own_vault(context, run) if self.shield.has_inverse else None
            reply = call_next(self._restore(message, vault), context)
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            return self._protect(reply.content, vault)

        return reply_once(message, context, run, content)

    def _restore(self, message: Message, vault: AnyVault | None) -> Message:
        found = _find(message.content, self.restored)
        if vault is None or found is None:
            return message
        kept = vault.load(SECRET)
        # First, whatever comes of it: a secret is used once.
        vault.drop(SECRET)
        if kept is None:
            raise RequestError(
                f"ShieldMod: '{self.restored}' came back, but no '{self.array}' is out that it "
                "could be of; each reply is restored once"
            )
        secret = self.shield.unpack_secret(kept[0])
        restored = self.shield.restore(_to_tensor(message.content, found, self.restored), secret)
        content = _replace(message.content, found, self.restored, restored.numpy())
        # A new message: a strategy may have sent the same content to all nodes of this process.
        return Message(content=content, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]

    def _protect(self, content: RecordDict, vault: AnyVault | None) -> RecordDict:
        found = _find(content, self.array)
        if found is None:
            if others := [name for record in content.array_records.values() for name in record]:
                raise RequestError(
                    f"ShieldMod: the reply has no array '{self.array}' to protect, but "
                    f"{', '.join(others)}"
                )
            return content
        protected, secret = self.shield.protect(_to_tensor(content, found, self.array))
        if vault is not None:
            vault.save(SECRET, self.shield.pack_secret(secret), {})
        grid = self.shield.grid
        released = grid.to_integers(protected) if grid else protected.detach().numpy()
        return _replace(content, found, self.array, released)


def _find(content: RecordDict, name: str) -> str | None:
    """Return the key of the record that holds an array."""
    keys = [key for key, record in content.array_records.items() if name in record]
    if len(keys) > 1:
        raise RequestError(f"ShieldMod: '{name}' stands in several records: {', '.join(keys)}")
    return keys[0] if keys else None


def _to_tensor(content: RecordDict, key: str, name: str) -> torch.Tensor:
    return torch.from_numpy(content.array_records[key][name].numpy())


def _replace(content: RecordDict, key: str, name: str, values: np.ndarray) -> RecordDict:
    """Return the content with another array in place of one, the rest as it is."""
    record = {**content.array_records[key], name: Array(np.ascontiguousarray(values))}
    return RecordDict({**content, key: ArrayRecord(record)})
