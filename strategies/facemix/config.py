"""The ``facemix`` section of an experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from pudica.clients import shields
from pudica.clients.facemix.terms import require_no_penalty
from pudica.clients.shields import AnyShield, ShieldConfig
from pudica.clients.shields.mixing import MixingConfig
from pudica.clients.shields.stages import ANONYMISER
from pudica.models.custom import ModelName
from pudica.models.cut import INPUT, OUTPUT
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.optimizers import OptimizerConfig
from pudica.models.settings import validate_settings
from pudica.strategies.core.cases import CasesConfig

# Of the ``facemix`` section: what organises a whole experiment, or is the edges' own.
EXPERIMENT_ONLY = frozenset(
    {"edges", "min_edges", "cases", "model", "place", "pre", "post", "anonymiser", "keys"}
)

WIRE_BYTES = {"float32": 4, "float16": 2}


class FacemixTraining(BaseModel):
    """How the three stages are trained; the defaults are paper 003's, where it says them.

    The optimiser, its weight decay and the epochs on CelebA are from the paper; learning rate,
    its schedule and the batch are ours.

    Attributes
    ----------
    epochs : int, in epochs
        How often training goes through all training images.
    batch_size : int, in images
        How many images a step of training takes, on each edge where edges train.
    optimizer : OptimizerConfig
        What trains all three stages.
    schedule : {"cosine", "step"}
        How the learning rate falls: by half a cosine wave to 0, or as the optimiser's
        ``step_size`` says.
    class_weights : {"none", "balanced"}
        ``balanced``: all answers to a question count the same, however many images have them.
    augment : {"none", "crop-flip", "handwriting"}
        How training images are changed at random. ``crop-flip``: random crop with 4 pixels of
        black padding, and horizontal flip. ``handwriting``: strokes slanted, stretched, bent, and
        made thinner or thicker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=256, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=1e-4)
    schedule: Literal["cosine", "step"] = "cosine"
    class_weights: Literal["none", "balanced"] = "none"
    augment: Literal["none", "crop-flip", "handwriting"] = "none"

    def scale_rate(self, rate: float, epoch: int) -> float:
        """Return what becomes of a learning rate by an epoch, counted from 0."""
        if self.schedule == "cosine":
            return rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.optimizer.model_copy(update={"learning_rate": rate}).learning_rate_at(epoch)


class AnonymiserConfig(BaseModel):
    """What an anonymiser is trained for, besides the attributes.

    Attributes
    ----------
    weight : float
        The weight of what the adversary knows, against the attributes.
    likeness : float
        The weight of the mean distance between normalised images and redrawn ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0)
    likeness: float = Field(default=1.0, ge=0)


class FacemixConfig(CasesConfig):
    """A model in three stages, how it is trained, and how it is served.

    Attributes
    ----------
    edges : int, in edges
        How many there are; test images are divided evenly among them.
    model : str
        A name of the zoo, ``custom:FILE.py:callable`` or ``torchvision:NAME``, which gets two
        logits for each attribute.
    place : {"both", "cloud", "edge"}
        Who computes: the edge the first and the last layers and the cloud those between; the
        cloud everything, on images behind the shield; or the edge everything.
    pre : str
        ``both``: the layer after which the edge's first stage ends.
    post : str
        ``both``: the layer after which the edge's last stage begins.
    shield : ShieldConfig or None
        What protects what the cloud computes on. None: ``mixing``, or nothing where the place is
        not ``both``.
    anonymiser : AnonymiserConfig or None
        ``cloud``: a network on the edge redraws images before they leave, so that nobody tells
        the classes of ``data.label`` apart; trained against somebody who tries. None: none does.
    keys : {"seeded", "secret"}
        What the edge draws matrices and orders from: the run's seed, which is for experiments, or
        the system's randomness.
    train : {"central", "split"}
        ``central``: the cloud owns the model and trains it on its own images, as it will be used.
        ``split``: edges hold images and labels, the cloud its stage.
    training : FacemixTraining
        How the three stages are trained.
    request : int, in images
        How many images a request to the cloud holds.
    batch : int, in images
        The most images that the cloud computes at once, of all edges' requests.
    wire : {"float32", "float16"}
        The type of what crosses between edges and cloud.
    report : bool
        Whether edges are asked how often they were right; what they predict stays there.
    evaluate_every : int, in epochs
        The model is measured on validation images after every so many epochs, and after the last.
    min_edges : int, in edges
        The run stops, to be resumed, if fewer answer.
    cases : dict of str to dict
        Several settings on the same data; each names what differs from the above.
    """

    shared_by_cases = frozenset({"edges"})

    edges: int = Field(default=2, ge=1, le=10_000)
    model: ModelName = "resnet-18"
    place: Literal["both", "cloud", "edge"] = "both"
    pre: str = "maxpool"
    post: str = "flatten"
    shield: AnyShield | None = None
    anonymiser: AnonymiserConfig | None = None
    keys: Literal["seeded", "secret"] = "seeded"
    train: Literal["central", "split"] = "central"
    training: FacemixTraining = FacemixTraining()
    request: int = Field(default=64, ge=1, le=100_000)
    batch: int = Field(default=256, ge=1, le=100_000)
    wire: Literal["float32", "float16"] = "float32"
    report: bool = True
    evaluate_every: int = Field(default=1, ge=1)
    min_edges: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_consistency(self, info: ValidationInfo) -> Self:
        if self.min_edges > self.edges:
            raise ValueError(f"min_edges: {self.min_edges}, but there are {self.edges} edges")
        if self.place == "edge" and self.shield is not None and self.shield.name != "none":
            raise ValueError(
                f"shield: nothing leaves the edge that '{self.shield.name}' could hide"
            )
        if self.shield is not None:
            try:
                require_no_penalty(self.shield)
            except RequestError as error:
                raise ValueError(f"shield: {error}") from error
        if self.train == "split" and self.place != "both":
            raise ValueError(f"train: split has stages on both sides, and place is {self.place}")
        if self.anonymiser and (self.place, self.around.name) != ("cloud", "none"):
            raise ValueError(
                "anonymiser: is in front of a cloud that computes everything; allowed with "
                "place: cloud, and no shield"
            )
        own = self.around
        if isinstance(own, MixingConfig) and not own.pad:
            for name, count in {
                "request": self.request,
                "training.batch_size": self.training.batch_size,
            }.items():
                if count % own.group:
                    raise ValueError(
                        f"{name}: {count} are no whole groups of {own.group}, and shield.pad is off"
                    )
        self.resolve_cases(info)
        return self

    @property
    def around(self) -> ShieldConfig:
        """The shield; where none is named, the default."""
        if self.shield is not None:
            return self.shield
        return shields.parse_config({"name": "mixing" if self.place == "both" else "none"})

    @property
    def stages(self) -> tuple[str, str]:
        """The layers after which ``pre`` and ``main`` end."""
        if self.place == "both":
            return self.pre, self.post
        if self.place == "edge":
            return OUTPUT, OUTPUT
        return (ANONYMISER if self.anonymiser else INPUT), OUTPUT


def read_settings(settings: Mapping[str, Any], given: Mapping[str, Any]) -> FacemixConfig:
    """Return the keyword arguments of a strategy as settings; RequestError names what is wrong.

    Parameters
    ----------
    settings : mapping
        Of the section and of its ``training``, by the same names.
    given : mapping
        ``train`` and ``shield``, which are no arguments.
    """
    learning = FacemixTraining.model_fields
    serving = set(FacemixConfig.model_fields) - EXPERIMENT_ONLY - {"training", *given}
    for name in settings:
        if name not in learning and name not in serving:
            known = unknown_name_error("argument", name, [*learning, *sorted(serving)])
            raise RequestError(f"FaceMix: {known}")
    own = {name: value for name, value in settings.items() if name in learning}
    training = validate_settings(FacemixTraining, own, "FaceMix")
    rest = {name: value for name, value in settings.items() if name in serving}
    return validate_settings(FacemixConfig, {**rest, **given, "training": training}, "FaceMix")
