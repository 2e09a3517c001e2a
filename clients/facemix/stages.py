"""What an edge of FaceMix was given and has agreed to, and the keys that hang on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from pudica.clients.data import Part
from pudica.clients.facemix.crossings import Crossings
from pudica.clients.facemix.images import Images
from pudica.clients.facemix.terms import Terms
from pudica.clients.runtime.role import Role
from pudica.clients.runtime.vault import AnyVault
from pudica.clients.shields import Shape, Shield, ShieldConfig, build
from pudica.clients.shields.mixing import group_size
from pudica.models import packing
from pudica.models.attributes import LOGITS
from pudica.models.errors import RequestError
from pudica.models.randomness import Randomness, SecretGenerator, numpy_generator

ENDS, TERMS = "ends", "terms.json"
Tensors = Mapping[str, torch.Tensor]
Keys = Literal["seeded", "secret"]


class EdgeStages(Role):
    """The first and the last stage of a model on an edge, and the terms on which it asks.

    Attributes
    ----------
    ends : ModuleList
        ``pre`` and ``post``.
    terms : Terms
        Set once it has joined.
    shield : Shield
        Around the cloud's stage; set once it has joined.
    asked : (int, int)
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
        self.asked = 0, LOGITS
        self._adopted = False

    def accept(self, words: Mapping[str, Any]) -> None:
        """Take the terms on which a cloud asks, and keep them.

        Raises
        ------
        RequestError
            They make no sense, or requests are too small to hide an image.
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
        """Take the place where to keep what must outlive a message."""
        super().bind(vault)
        self._crossings = Crossings(vault)
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
            If they do not fit the model, or are no numbers.
        RuntimeError
            If this case was served under others, or on other terms, or another run under these:
            the same images behind other keys show which mixtures belong together.
        """
        self._adopted = False  # what is refused leaves those in the vault
        asked = self._check_asked(attributes or len(self.attributes), answers)
        self.load_stages(arrays)
        stages = _digest(arrays)
        if self.hides:
            terms = f"run '{self.terms.run}', case '{self.terms.case}'|{self.fingerprint}"
            self._crossings.claim(stages, terms, self.shares["test"])
        self._pin(stages)
        note = {"attributes": asked[0], "answers": asked[1]}
        self.vault.save(f"{self.terms.case}-{ENDS}", dict(arrays), note)
        self.asked, self._adopted = asked, True

    def _check_asked(self, attributes: int, answers: int) -> tuple[int, int]:
        own = len(self.attributes)
        if attributes < 1 or answers < LOGITS or own not in (0, attributes):
            raise ValueError(
                f"a model of {attributes} attributes with {answers} answers each, and this edge's "
                f"images have {own}"
            )
        return attributes, answers

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
        """Return all that features hang on besides images."""
        return packing.state_tensors(self.ends)

    def load_adopted(self) -> None:
        """Take the stages from the vault, in a process that has not met them."""
        if self._adopted:
            return
        kept = self.vault.load(f"{self.terms.case}-{ENDS}")
        if kept is None:
            raise RuntimeError("this edge has not been given its stages yet")
        self.load_stages(kept[0])
        self._pin(_digest(kept[0]))  # it may have been told of other terms since
        own = len(self.attributes), LOGITS
        self.asked = kept[1].get("attributes", own[0]), kept[1].get("answers", own[1])
        self._adopted = True

    @property
    def hides(self) -> bool:
        """Whether what crosses is mixed under keys that nobody else can draw."""
        return group_size(self.mixing) > 1 and self.keys == "secret"

    # ---------------------------------------------------------------------------- keys

    @property
    def number(self) -> int:
        """By which its draws differ from those of other edges with the same seed."""
        return int(self.place or 0)

    @property
    def secret_name(self) -> str:
        """Under which the vault keeps what secret keys are drawn from."""
        return f"{self.terms.case}-mixing.key"

    def randomness(self, *purpose: str | int) -> Randomness:
        """Return what the key of one request or batch is drawn from.

        A secret one hangs on the stages too: asked again the edge says the same, and with other
        stages it draws anew.
        """
        if self.keys == "seeded":
            return numpy_generator(self.seed, "mixing", self.number, *purpose)
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(packing.pack(self.stage_tensors()).tobytes())
        what = "/".join(map(str, purpose)).encode()
        return SecretGenerator(self.vault.secret(self.secret_name), digest.digest() + what)


def _digest(arrays: Tensors) -> str:
    """Return what tells stages from others."""
    values = (arrays[name].numpy().tobytes() for name in sorted(arrays))
    return hashlib.blake2b(b"".join(values), digest_size=16).hexdigest()
