"""The stages of an edge of FaceMix, the terms it has agreed to, and the keys that hang on both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pudica.clients.data import ImageSet, Part
from pudica.clients.facemix.images import Images
from pudica.clients.facemix.terms import Terms
from pudica.clients.runtime.role import Role
from pudica.clients.runtime.vault import AnyVault, Vault
from pudica.clients.shields import Shape, Shield, ShieldConfig, build
from pudica.clients.shields.mixing import group_size
from pudica.models import packing
from pudica.models.attributes import LOGITS
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, SecretGenerator, numpy_generator

ENDS, TERMS = "ends", "terms.json"
CROSSED = ".crossed"
"""Beside the vaults of all runs."""
Tensors = Mapping[str, torch.Tensor]
Keys = Literal["seeded", "secret"]


class EdgeStages(Role):
    """The first and the last stage of a model on an edge, and the terms on which it asks.

    Attributes
    ----------
    ends : ModuleList
        ``pre`` and ``post``.
    terms, shield : Terms, Shield
        Set once the edge has joined.
    answer_shape : (int, int)
        How many questions the model answers, and how many answers each has.
    """

    mixing: ShieldConfig
    keys: Keys
    seed: int
    features: Shape
    attributes: list[str]
    shares: dict[Part, Images]
    ends: nn.ModuleList
    terms: Terms
    shield: Shield

    def hold_stages(self, ends: nn.Module) -> None:
        """Take the stages, whose weights are still to come."""
        self.ends = self.compute.move_model(ends)  # type: ignore[assignment]
        self.answer_shape = 0, LOGITS
        self._adopted = False

    def accept(self, words: Mapping[str, Any]) -> None:
        """Take the terms on which a cloud asks, and keep them.

        Raises
        ------
        RequestError
            They are invalid, or requests are too small to hide an image.
        """
        terms = Terms.read(words)
        group = group_size(self.mixing)
        if terms.request < group:
            raise RequestError(
                f"request: {terms.request} images, and this edge mixes groups of {group}; allowed: "
                f"{group} or more"
            )
        self._agree(terms)
        self.vault.write(TERMS, terms.model_dump_json().encode())

    def bind(self, vault: AnyVault) -> None:
        """Take the vault, and the terms that it holds."""
        super().bind(vault)
        if kept := vault.read(TERMS):
            self._agree(Terms.model_validate_json(kept))

    def _agree(self, terms: Terms) -> None:
        self.terms = terms
        self.shield = build(self.mixing, self.features, terms.largest(self.mixing))

    # ------------------------------------------------------------------------- stages

    def adopt(self, arrays: Tensors, attributes: int = 0, answers: int = LOGITS) -> None:
        """Take the first and the last stage from the cloud.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``weights`` and ``buffers``, as packed.
        attributes, answers : int
            How many questions the model answers, and how many answers each has.

        Raises
        ------
        ValueError
            If they do not fit the model, or are not finite.
        RuntimeError
            If this case was served under others, or on other terms, or another run under these:
            the same images behind other keys show which mixtures belong together.
        """
        self._adopted = False  # what is refused leaves those in the vault
        own = len(self.attributes)
        asked = attributes or own, answers
        if asked[0] < 1 or answers < LOGITS or own not in (0, asked[0]):
            raise ValueError(
                f"a model of {asked[0]} attributes with {answers} answers each, and this edge's "
                f"images have {own}"
            )
        self.load_stages(arrays)
        stages = _hash_stages(arrays)
        if self.hides:
            terms = f"run '{self.terms.run}', case '{self.terms.case}'|{self.fingerprint}"
            _register_crossing(self.vault, stages, terms, self.shares["test"])
        self._pin(stages)
        note = {"attributes": asked[0], "answers": asked[1]}
        self.vault.save(f"{self.terms.case}-{ENDS}", dict(arrays), note)
        self.answer_shape, self._adopted = asked, True

    def _pin(self, stages: str) -> None:
        if not self.vault.pin(f"{self.terms.case}-stages", f"{stages} {self.fingerprint}"):
            raise RuntimeError(
                "this edge was served under other stages, or on other terms, and asks nothing again"
            )

    @property
    def fingerprint(self) -> str:
        """A hash of the terms, and of all else here that decides what crosses."""
        own = self.mixing.model_dump_json(), self.keys, str(self.seed), self.place
        return self.terms.fingerprint(*own)

    def load_stages(self, arrays: Tensors) -> None:
        """Take stages for now; errors as of :meth:`adopt`."""
        for name, values in arrays.items():
            if not packing.all_finite(values):
                raise ValueError(f"stages' {name} with NaN or infinity")
        packing.load_model_arrays(self.ends, arrays)

    def stage_tensors(self) -> list[torch.Tensor]:
        """Return all that features depend on besides images."""
        return packing.state_tensors(self.ends)

    def load_adopted(self) -> None:
        """Take the stages from the vault, in a process that does not have them yet."""
        if self._adopted:
            return
        kept = self.vault.load(f"{self.terms.case}-{ENDS}")
        if kept is None:
            raise RuntimeError("this edge has not been given its stages yet")
        arrays, note = kept
        self.load_stages(arrays)
        self._pin(_hash_stages(arrays))  # other terms may have come since
        self.answer_shape = (
            note.get("attributes", len(self.attributes)),
            note.get("answers", LOGITS),
        )
        self._adopted = True

    # ---------------------------------------------------------------------------- keys

    @property
    def hides(self) -> bool:
        """Whether what crosses is mixed under keys that nobody else can draw."""
        return group_size(self.mixing) > 1 and self.keys == "secret"

    @property
    def number(self) -> int:
        """What makes its draws differ from those of other edges with the same seed."""
        return int(self.place or 0)

    @property
    def secret_name(self) -> str:
        """Under which the vault keeps what secret keys are drawn from."""
        return f"{self.terms.case}-mixing.key"

    def randomness(self, *purpose: str | int) -> Randomness:
        """Return what the key of one request or batch is drawn from.

        A secret one depends on the stages too: asked again the edge says the same, and with other
        stages it draws anew.
        """
        if self.keys == "seeded":
            return numpy_generator(self.seed, "mixing", self.number, *purpose)
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(packing.pack(self.stage_tensors()).tobytes())
        what = "/".join(map(str, purpose)).encode()
        return SecretGenerator(self.vault.secret(self.secret_name), digest.digest() + what)


def _hash_stages(arrays: Tensors) -> str:
    values = (arrays[name].numpy().tobytes() for name in sorted(arrays))
    return hashlib.blake2b(b"".join(values), digest_size=16).hexdigest()


def _register_crossing(vault: AnyVault, stages: str, terms: str, images: Images) -> None:
    """Note that images are to cross under some stages; RuntimeError if any did on other terms.

    The same image behind the same first stage and other keys is what the spans of two requests
    have in common: whoever has both finds it without a key. The record outlives a run, except of
    a vault in memory.
    """
    if isinstance(vault, Vault):
        vault = Vault(vault.root.parent.parent / CROSSED / vault.root.name)
    kept: dict[str, list[str]] = json.loads(vault.read(stages) or b"{}")
    own = set()
    for row in range(len(images)):
        # As they are stored, before any normalisation of ours.
        at = np.array([row])
        plain = images.plain_images(at) if isinstance(images, ImageSet) else images.batch(at)[0]
        pixels = np.ascontiguousarray(plain.numpy()).tobytes()
        own.add(hashlib.blake2b(pixels, digest_size=12).hexdigest())
    for before, hashes in kept.items():
        again = len(own.intersection(hashes)) if before != terms else 0
        if again:
            raise RuntimeError(
                f"{again} of this node's images crossed under these stages before "
                f"({before.split('|')[0]}), and under other keys they would show which "
                "mixtures belong together: train the stages anew"
            )
    if terms not in kept:
        vault.write(stages, json.dumps({**kept, terms: sorted(own)}).encode())
