"""What a node remembers beyond a run: which of its images crossed under which stages.

The same image behind the same first stage and other keys is what the spans of two requests have in
common: whoever has both finds it without a key.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from pudica.clients.facemix.images import Images, stored_images
from pudica.clients.runtime.vault import AnyVault, Vault

FOLDER = ".crossed"


class Crossings:
    """The record of one node, beside the vaults of its runs.

    Parameters
    ----------
    vault : AnyVault
        The node's, of one of its runs. A vault in memory ends with its process, and so does what
        it remembers.
    """

    def __init__(self, vault: AnyVault) -> None:
        self._record = vault
        if isinstance(vault, Vault):
            runs, node = vault.root.parent.parent, vault.root.name
            self._record = Vault(runs / FOLDER / node)

    def claim(self, stages: str, terms: str, images: Images) -> None:
        """Note that images are to cross under some stages, once.

        Parameters
        ----------
        stages : str
            Tells them apart from others.
        terms : str
            Under which keys: of which run and case, as it was agreed.

        Raises
        ------
        RuntimeError
            Some crossed under these stages before, on other terms.
        """
        kept: dict[str, list[str]] = json.loads(self._record.read(stages) or b"{}")
        own = _digests(images)
        for before, theirs in kept.items():
            again = len(own.intersection(theirs)) if before != terms else 0
            if again:
                raise RuntimeError(
                    f"{again} of this node's images crossed under these stages before "
                    f"({before.split('|')[0]}), and under other keys they would show which "
                    "mixtures belong together: train the stages anew"
                )
        if terms not in kept:
            self._record.write(stages, json.dumps({**kept, terms: sorted(own)}).encode())


def _digests(images: Images) -> set[str]:
    """Return a hash of each image, as it is before it is normalised."""
    found = set()
    for row in range(len(images)):
        pixels = np.ascontiguousarray(stored_images(images, np.array([row])).numpy())
        found.add(hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest())
    return found
