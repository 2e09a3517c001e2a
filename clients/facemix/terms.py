"""What an edge and its cloud agree on when they join, and the shield's settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

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

ImageCount = Annotated[int, Field(ge=1, le=10**9)]


class Terms(BaseModel):
    """How a cloud asks, as an edge has agreed to; settings as of :class:`.InferenceAssignment`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: RunName
    case: CaseName
    request: ImageCount
    batch_size: ImageCount
    wire: Wire
    train: Literal["central", "split"]
    augment: Literal["none", "crop-flip", "handwriting"] = "none"
    class_weights: Literal["none", "balanced"] = "none"
    report: bool

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Self:
        """Return the terms that a cloud sent when a node joined; RequestError if invalid."""
        try:
            return cls.model_validate(dict(words))
        except ValidationError as error:
            raise RequestError("\n".join(explain_errors(error, cls, "terms"))) from error

    def largest(self, shield: ShieldConfig) -> int:
        """Return the most examples that are protected together, decoys among them."""
        return padded_count(max(self.batch_size, self.request), shield)

    def fingerprint(self, *others: str) -> str:
        """Return a hash of these terms but the run, and of what else decides the keys."""
        parts = "\0".join([self.model_dump_json(exclude={"run"}), *others])
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def shield_settings(mixing: Shield | ShieldConfig | Mapping[str, Any] | None) -> ShieldConfig:
    """Return the shield's settings, by default mixing in groups of eight.

    Parameters
    ----------
    mixing : Shield, ShieldConfig or mapping, optional
        ``Mixing(group=8)``, or ``{"group": 8}``; for another shield with its ``name``.

    Raises
    ------
    RequestError
        A setting that is unknown or out of range, or a shield that adds to a loss.
    """
    given = mixing.config if isinstance(mixing, Shield) else mixing
    try:
        if not isinstance(given, ShieldConfig):
            given = {"name": "mixing", **(given or {})}
        return require_no_penalty(shields.parse_config(given))
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, MixingConfig, "mixing"))) from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"mixing: {error}") from error


def require_no_penalty(config: ShieldConfig) -> ShieldConfig:
    """Return a shield's settings, or raise RequestError if it would add to a loss."""
    if shields.find_shield(config.name).has_penalty():
        raise RequestError(
            f"'{config.name}' adds to the loss of a front; it is for split learning, not for "
            "facemix, where it would have no effect"
        )
    return config


def stage_shape(name: str, stage: nn.Module, shape: Shape) -> Shape:
    """Return the shape of a stage's output for one example; RequestError if it does not fit."""
    try:
        return activation_shape(stage, shape)
    except Exception as error:
        raise RequestError(f"{name}: fails on examples of shape {shape}: {error}") from error
