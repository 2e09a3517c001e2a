"""What an edge and its cloud agree on when they join, and the settings of what hides images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from pudica.clients import shields
from pudica.clients.assignments import Wire
from pudica.clients.shields import Shape, Shield, ShieldConfig
from pudica.clients.shields.front import activation_shape
from pudica.clients.shields.mixing import MixingConfig, padded_count
from pudica.models.errors import RequestError
from pudica.models.naming import CaseName, RunName
from pudica.models.settings import explain_errors

MOST = 10**9
"""Images of a request or a batch."""
Augment = Literal["none", "crop-flip", "handwriting"]
ClassWeights = Literal["none", "balanced"]
Train = Literal["central", "split"]


class Terms(BaseModel):
    """How a cloud asks, as an edge has agreed to.

    Attributes
    ----------
    run, case : str
        What the vault keeps is kept by case.
    request, batch_size : int
        Images of a request, and of a training batch.
    wire : {"float32", "float16"}
        Of what crosses.
    train : {"central", "split"}
        Whether the edge takes part in training.
    augment, class_weights : str
        Of training on the edge.
    report : bool
        Whether the cloud asks how often it was right.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: RunName
    case: CaseName
    request: int = Field(ge=1, le=MOST)
    batch_size: int = Field(ge=1, le=MOST)
    wire: Wire
    train: Train
    augment: Augment = "none"
    class_weights: ClassWeights = "none"
    report: bool

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Self:
        """Return what a cloud said when a node joined; RequestError if it makes no sense."""
        try:
            return cls.model_validate(dict(words))
        except ValidationError as error:
            raise RequestError("\n".join(explain_errors(error, cls, "terms"))) from error

    def largest(self, shield: ShieldConfig) -> int:
        """Return the most examples that are protected together, decoys among them."""
        return padded_count(max(self.batch_size, self.request), shield)

    def fingerprint(self, *others: str) -> str:
        """Return a hash of these terms, whatever the run, and of what else decides the keys."""
        parts = "\0".join([self.model_dump_json(exclude={"run"}), *others])
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def shield_settings(mixing: Shield | ShieldConfig | Mapping[str, Any] | None) -> ShieldConfig:
    """Return the settings of what hides images: by default mixing in groups of eight.

    Parameters
    ----------
    mixing : Shield, ShieldConfig or mapping, optional
        ``Mixing(group=8)``, or the settings alone: ``{"group": 8}``; another shield's with its
        ``name``.

    Raises
    ------
    RequestError
        A setting that is unknown or out of range.
    """
    if isinstance(mixing, Shield):
        config: ShieldConfig = mixing.config
        return config
    if mixing is None:
        return MixingConfig()
    try:
        given = mixing if isinstance(mixing, ShieldConfig) else {"name": "mixing", **mixing}
        return shields.parse_config(given)
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, MixingConfig, "mixing"))) from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"mixing: {error}") from error


def stage_shape(name: str, stage: nn.Module, shape: Shape) -> Shape:
    """Return the shape of what a stage makes of one example.

    Raises
    ------
    RequestError
        It does not take examples of this shape.
    """
    try:
        return activation_shape(stage, shape)
    except Exception as error:
        raise RequestError(f"{name}: fails on examples of shape {shape}: {error}") from error
