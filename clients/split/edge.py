"""An edge of split learning: private images, the front of a model, answers to the cloud."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients.assignments import SplitTerms, hash_name, is_guaranteed
from pudica.clients.data import Part
from pudica.clients.data.examples import Examples, as_examples, hash_classes, list_classes
from pudica.clients.runtime.releasing import function_of
from pudica.clients.runtime.role import Handler
from pudica.clients.runtime.vault import AnyVault, MemoryVault
from pudica.clients.shields import Guarantee, NoShield, Shield
from pudica.clients.shields.front import Front
from pudica.clients.split.evaluation import EvaluationAnswers
from pudica.clients.split.handlers import HANDLERS
from pudica.clients.split.holder import Images, Terms
from pudica.clients.split.releases import OpenReleases
from pudica.clients.split.training import TrainingAnswers
from pudica.models import packing
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.naming import validate_node_name
from pudica.models.optimizers import OptimizerConfig, Optimizing
from pudica.models.randomness import derive, temporary_seed
from pudica.models.trial import apply_layers, count_logits

TERMS, SHIELD = "terms.json", "shield"
MAIN = "main"
TRIED = 2
"""Images on which front and back are tried."""


class Edge(TrainingAnswers, EvaluationAnswers):
    """A device of split learning; answers a :class:`.SplitLearning` strategy.

    Images and the front's gradients stay here. What leaves are protected activations of training
    images with their labels, and how many test images were classified correctly; of the front
    itself only what ``fronts`` of the strategy says: its gradient where fronts are averaged, its
    weights where one is handed on.

    Parameters
    ----------
    front : Module
        The layers before the cut, the same as the strategy's. It is copied, and begins with the
        strategy's weights.
    train, test : Dataset
        Map-style, of pairs of an image, a float tensor (C, H, W), and its class.
    shield : Shield, optional
        What activations pass before they leave, such as ``ClipGaussian(epsilon=3)``. It is
        copied; shape and batch size are bound here unless they are already.
    optimizer : callable or OptimizerConfig, optional
        Makes the optimiser of a front that learns here (``private``, ``handoff``), given its
        parameters; by default as the strategy says.
    back : Module, optional
        The layers behind the cut, to measure the whole model here: the strategy sends their
        weights. Without it the device measures nothing.
    classes : int, optional
        How many there are; by default what ``back``, the attribute ``classes`` of the data set,
        or the strategy's model says.
    noise : {"secret", "seeded"}
        Of the shield: drawn from the system's randomness, or repeatably from ``seed``, which
        protects nothing.
    reports : bool
        Whether to say how many test images were classified correctly.
    name : str, optional
        By default the node's partition.
    seed : int
        Of the order of batches, of layers that draw, and of seeded noise.
    compute : ComputeConfig, optional
        Device, threads and precision.

    Raises
    ------
    DataError
        A data set that is empty, or yields no pairs.
    RequestError
        A front that does not accept the images, a back whose output is no logits, a shield that
        is bound to another shape.
    """

    handlers: ClassVar[Mapping[str, Handler]] = HANDLERS
    releases: Any

    def __init__(
        self,
        front: nn.Module,
        train: Any,
        test: Any = None,
        *,
        shield: Shield | None = None,
        optimizer: Optimizing | None = None,
        back: nn.Module | None = None,
        classes: int | None = None,
        noise: str = "secret",
        reports: bool = True,
        name: str | None = None,
        seed: int = 0,
        compute: ComputeConfig | None = None,
    ) -> None:
        if noise not in ("secret", "seeded"):
            raise RequestError(f"noise: must be 'secret' or 'seeded', is {noise!r}")
        self.name = validate_node_name(name) if name else None
        self.train = as_examples(train, "train")
        self._test = None if test is None else as_examples(test, "test")
        self._optimizer, self._noise, self.seed = optimizer, noise, seed
        self._reports = reports and self._test is not None
        self.compute = Compute(compute or ComputeConfig())
        self._layers, self._back = copy.deepcopy(front), copy.deepcopy(back)
        if shield is not None and not isinstance(shield, Shield):
            raise RequestError(
                "shield: must be one of pudica.clients.shields, such as ClipGaussian(epsilon=3), "
                f"is {type(shield).__name__}"
            )
        self._given_shield = copy.deepcopy(shield) if shield is not None else NoShield()
        x, _ = self.train.batch(np.arange(min(TRIED, len(self.train))))
        activations = apply_layers("front", self._layers, "images", x)
        self.activation = tuple(activations.shape[1:])
        if self._given_shield.is_bound and tuple(self._given_shield.shape) != self.activation:
            raise RequestError(
                f"shield: bound to examples of {tuple(self._given_shield.shape)}, the front's "
                f"activations are {self.activation}"
            )
        self.classes = classes or self._count_classes(activations)

    def _count_classes(self, activations: torch.Tensor) -> int:
        """Return how many classes there are as far as it is known here; else 0."""
        if self._back is not None:
            return count_logits("back", self._back, "activations", activations)
        return len(list_classes(self.train))

    # --------------------------------------------------------------------------- joining

    def bind(self, vault: AnyVault) -> None:
        """Take the place where to keep what outlives a message, and what was agreed there."""
        super().bind(vault)
        if kept := vault.read(TERMS):
            self._agree(SplitTerms.model_validate_json(kept))

    def accept(self, words: Mapping[str, Any]) -> None:
        """Agree on how to train, for the whole run; go back to a turn if it is resumed.

        Raises
        ------
        RequestError
            The terms make no sense, or do not fit the shield.
        RuntimeError
            This device joined the run on other terms, or with another shield, before.
        """
        try:
            terms = SplitTerms.model_validate_json(str(words["terms"]))
        except (KeyError, ValidationError) as error:
            raise RequestError(
                f"this node is an edge of split learning, and was asked for something else: {error}"
            ) from error
        self._agree(terms)
        own = hash_name(str(words["run"]), self.name or f"node-{self.place}")
        # Who has released everything does not go back: nothing is released twice.
        if own in str(words.get("released", "")).split():
            self.catch_up()
        else:
            self.roll_back(int(words["turn"]))

    def _agree(self, agreed: SplitTerms) -> None:
        """Put terms in force that make sense, and are those of this run."""
        front = Front(copy.deepcopy(self._layers), self._fit_shield(agreed.batch_size))
        optimizer = self._optimizer or agreed.optimizer
        if optimizer is None and agreed.fronts in ("private", "handoff"):
            raise RequestError(
                "optimizer: the strategy's is a function, which no message holds; "
                "Edge(..., optimizer=...)"
            )
        learns = agreed.fronts != "frozen" and any(True for _ in front.layers.parameters())
        if front.shield.has_penalty() and not learns:
            raise RequestError(
                f"shield: {type(front.shield).__name__} adds to the loss of a front, and this "
                "device's learns nothing: it is frozen, or has no weights"
            )
        shield = _identify_shield(front.shield, self._noise)
        if not self.vault.pin(TERMS, agreed.model_dump_json()):
            raise RuntimeError("this device joined this run on other terms before")
        if not self.vault.pin(SHIELD, shield):
            raise RuntimeError(
                "this device joined this run with another shield, or other noise, before: give "
                "Edge(..., shield=..., noise=...) as it was, or start a new run"
            )
        promised = is_guaranteed(front.shield.config, agreed.fronts, self._noise)
        self.releases = OpenReleases(promised, self._reports)
        terms = Terms(
            case=MAIN,
            fronts=agreed.fronts,
            batch_size=agreed.batch_size,
            wire=agreed.wire,
            noise=self._noise,
            seed=derive(self.seed, "edge", agreed.seed),
            place=self.place,
            optimizer=optimizer or OptimizerConfig(),
        )
        # Secret noise hangs on it: under another shield the same batch must not get the same.
        fingerprint = function_of(agreed.model_dump_json(), shield, _identify_layers(front.layers))
        self._take_up(front, front.layers, terms, fingerprint)

    def _fit_shield(self, batch_size: int) -> Shield:
        shield = copy.deepcopy(self._given_shield)
        if not shield.is_bound:
            return shield.bind(self.activation, batch_size)
        if shield.batch_size < batch_size:
            raise RequestError(
                f"shield: bound to batches of at most {shield.batch_size}, the strategy's have "
                f"{batch_size}"
            )
        return shield

    def describe_data(self) -> dict[str, int | str]:
        """Return what the cloud learns of the data, and of what comes from here."""
        image = self.train.batch(np.arange(1))[0].shape[1:]
        about: dict[str, Any] = {
            "classes": self.classes,
            "names": hash_classes(self.train),
            "key": "",
            "shape": "x".join(map(str, image)),
            "train": len(self.train),
            "validation": 0,
            "test": len(self._test) if self._test is not None else 0,
            "reports": int(self._reports),
            "evaluates": int(self._back is not None),
            "lasts": int(isinstance(self.vault, MemoryVault)),
            "begun": int(self._ready),
        }
        if grid := self.front.shield.grid:
            about |= {"step": grid.step, "integers": grid.dtype}
        return about | ({"name": self.name} if self.name else {})

    # ------------------------------------------------------------------------ what it holds

    @property
    def label(self) -> str:
        """How messages name this device and where its model is cut."""
        return f"{self.name or 'this edge'}: the activation at the cut"

    def begin(self, turn: int = -1, of: int | None = None) -> None:
        """Be up to date; see :meth:`.FrontHolder.begin`."""
        if not hasattr(self, "terms"):
            raise RuntimeError("this node has not joined the run, or its vault was emptied")
        super().begin(turn, of)

    def images(self, part: Part) -> Images:
        """Return this device's own images of one part."""
        found = {"train": self.train, "test": self._test}.get(part)
        if found is None:
            raise RuntimeError(f"this device has no {part} images; Edge(..., test=...)")
        return found

    def make_back(self) -> nn.Module:
        """Return a copy of the layers behind the cut."""
        if self._back is None:
            raise RuntimeError("this device has no layers behind the cut; Edge(..., back=...)")
        return copy.deepcopy(self._back)

    def _load(self, epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch; transforms that draw from PyTorch draw the same after a restart."""
        steady = not isinstance(self.train, Examples) or isinstance(
            self.train.dataset, TensorDataset
        )
        seed = derive(self.terms.seed, "transforms", self.terms.place, epoch, step)
        with nullcontext() if steady else temporary_seed(seed):
            return super()._load(epoch, step)

    def guarantee(self) -> Guarantee:
        """Return what holds of a training image in one release of its activation.

        Releases add up, also over runs, and no account is kept of them here: a strategy asks for
        each image in every epoch, or with ``release="once"`` a single time. Asked for the same
        batch of an epoch again, the device says the same. Labels and the numbers of examples are
        public; how many test images were classified correctly is said as it is.

        Raises
        ------
        RuntimeError
            No strategy has let this device join yet.
        """
        if not hasattr(self, "terms"):
            raise RuntimeError("what holds depends on the strategy: this edge has not joined yet")
        if self.terms.fronts != "frozen":
            reason = "the front learns from the images without noise"
        elif self.terms.noise == "seeded":
            reason = "the noise can be repeated and subtracted"
        else:
            return self.front.shield.guarantee()
        return Guarantee("record", None, reasons=(reason,))


def _identify_shield(shield: Shield, noise: str) -> str:
    """Return a digest of all that a bound shield makes of activations."""
    grid = shield.grid
    return function_of(
        type(shield).__qualname__,
        shield.config.model_dump_json(),
        asdict(grid) if grid else None,
        list(shield.shape),
        shield.batch_size,
        noise,
    )


def _identify_layers(layers: nn.Module) -> str:
    """Return a digest of layers' architecture, the same in every process."""
    shapes = [list(tensor.shape) for tensor in packing.state_tensors(layers)]
    return function_of(re.sub(r"0x[0-9a-fA-F]+", "", repr(layers)), shapes)
