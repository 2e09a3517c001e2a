"""Shields protect private data before it is sent; one file per family.

A *mechanism* has a differential-privacy guarantee, an *obfuscation* has none. Both are subclasses
of :class:`Shield`: modules with keyword arguments, which an experiment's settings build as well.

Examples
--------
>>> shield = ClipGaussian(epsilon=3, delta=1e-5, clip=1.0)
>>> protected = shield(features)
>>> str(shield.guarantee())
'ε = 3 (δ = 1e-05) for one record'
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from pudica.clients.shields.base import Guarantee, Mechanism, Shape, Shield, ShieldConfig
from pudica.clients.shields.element_level import BatchNormLaplace, NormGaussian, PixelLaplace
from pudica.clients.shields.integers import ClipGaussian, ClipLaplace, Counts
from pudica.clients.shields.mixing import Mixing
from pudica.clients.shields.no_peek import NoPeek
from pudica.clients.shields.obfuscation import AdditiveNoise, LowResolution, NoShield, Quantise
from pudica.clients.shields.registry import SHIELDS, find_shield, load_shields
from pudica.models.errors import RequestError
from pudica.models.settings import explain_errors

if TYPE_CHECKING:
    from pudica.clients.runtime.shield_mod import ShieldMod
    from pudica.clients.shields.disguises.transform import Disguise

__all__ = [
    "RECORD_LEVEL",
    "SHIELDS",
    "AdditiveNoise",
    "AnyShield",
    "BatchNormLaplace",
    "ClipGaussian",
    "ClipLaplace",
    "Counts",
    "Disguise",
    "Guarantee",
    "LowResolution",
    "Mechanism",
    "Mixing",
    "NoPeek",
    "NoShield",
    "NormGaussian",
    "PixelLaplace",
    "Quantise",
    "Shape",
    "Shield",
    "ShieldConfig",
    "ShieldMod",
    "build",
    "find_shield",
    "parse_config",
    "protect_without_noise",
]

_HOMES = {
    "Disguise": "pudica.clients.shields.disguises.transform",
    "ShieldMod": "pudica.clients.runtime.shield_mod",
}


def __getattr__(name: str) -> Any:
    """Import what is slow to import, torchvision and Flower, when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


RECORD_LEVEL = ("clip-gaussian", "clip-laplace")
"""Shields whose ε holds for a whole example."""


def parse_config(values: Any) -> ShieldConfig:
    """Parse the settings of a shield from a mapping that has its ``name``; else ValueError."""
    if isinstance(values, ShieldConfig):
        return values
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ValueError(f"must be a section with a name; allowed: {', '.join(load_shields())}")
    return find_shield(values["name"]).schema.model_validate(dict(values))


def _read_settings(values: Any) -> ShieldConfig:
    try:
        return parse_config(values)
    except ValidationError as error:
        schema = find_shield(values["name"]).schema
        raise ValueError("; ".join(explain_errors(error, schema))) from error


_OneOfOurs: Any = Annotated[
    Union[tuple(kind.schema for kind in SHIELDS.values())],  # noqa: UP007
    Field(discriminator="name"),
]
AnyShield = Annotated[
    SerializeAsAny[ShieldConfig],
    BeforeValidator(_read_settings, json_schema_input_type=_OneOfOurs),
]
"""A shield's settings as a field of others; a JSON schema of it lists our shields alone."""


def validate_names(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is such a shield with such settings; some may be missing."""
    name = str(values.get("name"))
    schema = find_shield(name).schema
    for key in values:
        if key not in schema.model_fields:
            raise ValueError(f"'{name}' has no {key}; allowed: {', '.join(schema.model_fields)}")


def protect_without_noise(shield: Shield, tensor: torch.Tensor) -> torch.Tensor:
    """Apply :meth:`Shield.protect` without the noise, to measure what the noise costs."""
    return (
        shield.bounded(shield.validate_input(tensor)) if isinstance(shield, Mechanism) else tensor
    )


def build(config: ShieldConfig, shape: Shape, batch: int) -> Shield:
    """Build a shield for examples of a shape, ``batch`` of them at most protected together.

    RequestError if the shield does not fit this shape or batch.
    """
    kind = find_shield(config.name)
    try:
        return kind(**config.model_dump(exclude={"name"})).bind(shape, batch)
    except RequestError as error:
        reason = str(error).removeprefix(f"{kind.__name__}: ")
        raise RequestError(f"shield '{config.name}': {reason}") from error
