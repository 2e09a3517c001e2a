"""An edge of FaceMix: private images, the first and the last layers, keys that live for a request.

What the cloud computes for it is mixed (see :mod:`pudica.clients.shields.mixing`); what it
predicts stays in its vault.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from pudica.clients import protocol
from pudica.clients.assignments import InferenceAssignment
from pudica.clients.data import ImageSet, Part, Splits, load_once
from pudica.clients.runtime.role import Role
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.decoys import count_missing, make_decoys
from pudica.clients.shields.draws import draw_permutations
from pudica.clients.shields.front import activation_shape
from pudica.clients.shields.mixing import group_size
from pudica.clients.shields.stages import StagedModel, build_staged_cached
from pudica.clients.split.crossings import Crossings
from pudica.models import packing
from pudica.models.attributes import count_confusions, predict_answers
from pudica.models.compute import Compute
from pudica.models.cut import OUTPUT
from pudica.models.randomness import Randomness, SecretGenerator, numpy_generator

ENDS = "ends"
DECOYS_OF = 32
"""Of so many other images decoys are made."""
AT_ONCE = 256
"""Images that pass the first stage together."""
Numbers = dict[str, int | float]
Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Asked:
    """One request that waits for its answer.

    Attributes
    ----------
    rows : ndarray of int64
        Which of the own images it asks about.
    places : ndarray of int64
        Where they stand among what is protected, decoys between them.
    secret : object
        What the shield needs to restore the answer.
    sent : Tensor
        What left, with its graph in training.
    """

    rows: np.ndarray
    places: np.ndarray
    secret: Any = field(repr=False)
    sent: torch.Tensor


class InferenceEdge(Role):
    """One edge's side of every exchange.

    Parameters
    ----------
    vault : Vault
        Where its stages, its key and its predictions lie.
    assignment : InferenceAssignment
    """

    def __init__(self, vault: Vault, assignment: InferenceAssignment) -> None:
        a = assignment
        self.vault = vault
        self.assignment = a
        self.compute = Compute(a.compute)
        self.data: Splits = load_once(a.data.model_dump_json(), a.data_seed)
        built: StagedModel = build_staged_cached(
            a.model, len(self.data.attributes), self.data.shape, a.stages, a.shield, a.largest
        )
        self.shield = built.shield
        self.returned = activation_shape(built.main, built.shield.shape)
        # A copy: the model is shared with the other edges of this process.
        self.ends: nn.ModuleList = self.compute.move_model(copy.deepcopy(built.edge_stages))  # type: ignore[assignment]
        # Where the cloud trains, training images are its own.
        parts: tuple[Part, ...] = ("test",) if a.train == "central" else get_args(Part)
        self.shares: dict[Part, ImageSet] = {part: self._share(part) for part in parts}
        self._crossings = Crossings(vault)
        self._pending: dict[int, Asked] = {}
        self._first = 0
        self._adopted = False

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud is told of the data."""
        return {
            "classes": self.data.num_classes,
            "key": self.data.key,
            "shape": "x".join(map(str, self.data.shape)),
            "attributes": "\n".join(self.data.attributes),
            "reports": int(self.assignment.report),
            **{part: len(self.shares.get(part, ())) for part in get_args(Part)},
        }

    def roll_back(self, turn: int) -> None:  # noqa: ARG002
        """Forget what waits for an answer: a run that goes back asks for all of a case again."""
        self._pending.clear()

    def _share(self, part: Part) -> ImageSet:
        return self.assignment.share(self.data, part)

    # ------------------------------------------------------------------------- stages

    def adopt(self, arrays: Tensors) -> None:
        """Take the first and the last stage, and by what images are normalised, from the cloud.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            ``weights`` and ``buffers``, as packed; ``normalisation``, (2, C).

        Raises
        ------
        ValueError
            If they do not fit the model, or are no numbers.
        RuntimeError
            If this case was served under others, or on other terms, or another run under these:
            the same images behind other keys show which mixtures belong together.
        """
        self._adopted = False  # what is refused leaves those in the vault
        self.load_stages(arrays)
        stages = _digest(arrays)
        if self._hides:
            terms = f"run '{self.assignment.run}', case '{self.assignment.case}'|{self._terms}"
            self._crossings.claim(stages, terms, self.shares["test"])
        self._pin(stages)
        self.vault.save(f"{self.assignment.case}-{ENDS}", dict(arrays), {})
        self._adopted = True

    def _pin(self, stages: str) -> None:
        if not self.vault.pin(f"{self.assignment.case}-stages", f"{stages} {self._terms}"):
            raise RuntimeError(
                "this edge was served under other stages, or on other terms, and asks nothing again"
            )

    @property
    def _terms(self) -> str:
        return self.assignment.fingerprint()

    def load_stages(self, arrays: Tensors) -> None:
        """Take stages for now; errors as of :meth:`adopt`."""
        for name, values in arrays.items():
            if not packing.all_finite(values):
                raise ValueError(f"stages' {name} with NaN or infinity")
        packing.load_model_arrays(self.ends, arrays)
        if "normalisation" in arrays:
            mean, std = arrays["normalisation"].float()[:, :, None, None]
            if float(std.min()) <= 0:
                raise ValueError("normalisation with no deviation")
            self.shares = {
                part: replace(images, mean=mean, std=std) for part, images in self.shares.items()
            }

    def _ready(self) -> None:
        """Take the stages from the vault, in a process that has not met them."""
        if self._adopted:
            return
        kept = self.vault.load(f"{self.assignment.case}-{ENDS}")
        if kept is None:
            raise RuntimeError("this edge has not been given its stages yet")
        self.load_stages(kept[0])
        self._pin(_digest(kept[0]))  # it may have been told of other terms since
        self._adopted = True

    @property
    def _hides(self) -> bool:
        """Whether what crosses is mixed under keys that nobody else can draw."""
        return group_size(self.assignment.shield) > 1 and self.assignment.keys == "secret"

    # ----------------------------------------------------------------------- requests

    @property
    def requests(self) -> int:
        """How many requests its test images make."""
        return -(-len(self.shares["test"]) // self.assignment.request)

    def next_request(self) -> int | None:
        """Return the first request that has no answer yet, None if all have.

        An answer stands, and no request is asked again once it is there. With the last answer the
        secret is forgotten that keys were drawn from.
        """
        while self._first < self.requests and self.vault.load(self._answers(self._first)):
            self._first += 1
        if self._first == self.requests:
            self.vault.delete(self._secret)
            return None
        return self._first

    def ask(self, number: int) -> np.ndarray:
        """Return what leaves of one request: its images behind ``pre`` and the shield.

        Raises
        ------
        ValueError
            If there is no such request.
        """
        self._ready()
        asked = self._pending[number] = self._asked(number)
        return protocol.on_wire(asked.sent, self.assignment.wire)

    def _asked(self, number: int) -> Asked:
        images, size = self.shares["test"], self.assignment.request
        if not 0 <= number < self.requests:
            raise ValueError(f"request {number} of {self.requests}")
        own = np.arange(number * size, min((number + 1) * size, len(images)))
        randomness = self.randomness("request", number)
        x = torch.cat([images.batch(own)[0], self._decoys(images, own, randomness)])
        order = draw_permutations((len(x),), randomness)
        with torch.no_grad():
            sent, secret = self.shield.protect(self._features(x[order]), randomness)
        places = order.argsort()[: len(own)].numpy()
        return Asked(own, places, secret, sent)

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        pre = self.ends[0].eval()
        parts = x.split(AT_ONCE)
        return torch.cat([self.compute.forward(pre, self.compute.move_batch(part)) for part in parts])

    def _decoys(self, images: ImageSet, own: np.ndarray, randomness: Randomness) -> torch.Tensor:
        """Return what fills a request's groups, made of other own images, if there are any."""
        lacking = count_missing(len(own), self.assignment.shield)
        if not lacking:
            return torch.empty(0, *self.data.shape)
        others = np.setdiff1d(np.arange(len(images)), own)
        others = others if len(others) else own
        drawn = others[draw_permutations((len(others),), randomness).numpy()][:DECOYS_OF]
        return make_decoys(images.batch(drawn)[0], lacking, randomness)

    def answer(self, number: int, outputs: torch.Tensor) -> None:
        """Finish a request with what the cloud made of it, and keep what is predicted.

        The first answer to a request stands: a cloud can't try others, and count again.

        Raises
        ------
        ValueError
            If the answer is none to the request that waits for one: another number or shape, NaN
            or infinity.
        """
        self._ready()
        waiting = self.next_request()
        if waiting is None or 0 <= number < waiting:
            return
        if number != waiting:
            raise ValueError(f"an answer to request {number}, {waiting} waits for one")
        # In a fresh process the key is drawn again, from the vault's secret.
        asked = self._pending.get(number) or self._asked(number)
        outputs = packing.validate_tensor("outputs", outputs, (len(asked.sent), *self.returned))
        self._pending.pop(number, None)
        with torch.no_grad():
            restored = self.shield.restore(self.compute.move_batch(outputs), asked.secret)
            logits = self.compute.forward(self.ends[1].eval(), restored).cpu()
        kept = {
            "rows": torch.from_numpy(asked.rows),
            "answers": predict_answers(logits)[asked.places].to(torch.uint8),
        }
        self.vault.save(self._answers(number), kept, {})

    def answer_alone(self) -> None:
        """Answer all requests without anybody, where everything is computed here."""
        self._ready()
        for number in range(self.requests):
            self.answer(number, self._asked(number).sent.cpu())

    @property
    def alone(self) -> bool:
        """Whether nothing is computed elsewhere."""
        return self.assignment.stages[0] == OUTPUT

    def _answers(self, number: int) -> str:
        return f"{self.assignment.case}-answers-{number:06d}"

    def counts(self) -> np.ndarray:
        """Return how often which answer was right, (A, 2, 2): truth, then answer.

        Raises
        ------
        RuntimeError
            If this edge reports nothing, or has not all answers.
        """
        if not self.assignment.report:
            raise RuntimeError("this edge keeps to itself how often it was right")
        truth = torch.from_numpy(self.shares["test"].attributes)
        total = torch.zeros(truth.shape[1], 2, 2, dtype=torch.int64)
        for number in range(self.requests):
            kept = self.vault.load(self._answers(number))
            if kept is None:
                raise RuntimeError(f"request {number} of {self.requests} was not answered")
            total += count_confusions(kept[0]["answers"].long(), truth[kept[0]["rows"]])
        counted: np.ndarray = total.numpy()
        return counted

    # ---------------------------------------------------------------------------- keys

    @property
    def _secret(self) -> str:
        return f"{self.assignment.case}-mixing.key"

    def randomness(self, *purpose: str | int) -> Randomness:
        """Return what the key of one request or batch is drawn from.

        A secret one hangs on the stages too: asked again the edge says the same, and with other
        stages it draws anew.
        """
        a = self.assignment
        if a.keys == "seeded":
            return numpy_generator(a.seed, "mixing", a.partition, *purpose)
        digest = hashlib.blake2b(self.assignment.fingerprint().encode(), digest_size=16)
        images = self.shares["test"]
        tensors = [*packing.state_tensors(self.ends), images.mean, images.std]
        digest.update(packing.pack(tensors).tobytes())
        what = "/".join(map(str, purpose)).encode()
        return SecretGenerator(self.vault.secret(self._secret), digest.digest() + what)


def _digest(arrays: Tensors) -> str:
    """Return what tells stages from others."""
    values = (arrays[name].numpy().tobytes() for name in sorted(arrays))
    return hashlib.blake2b(b"".join(values), digest_size=16).hexdigest()
