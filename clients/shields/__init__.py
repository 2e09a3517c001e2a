"""Shields protect private data before it is sent; one file per family.

A *mechanism* has a differential-privacy guarantee, an *obfuscation* has none. Both are subclasses
of :class:`Shield`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pudica.clients.shields.base import Guarantee, Mechanism, Shape, Shield, ShieldConfig
from pudica.clients.shields.clipping import (
    ClipGaussian,
    ClipGaussianConfig,
    ClipLaplace,
    ClipLaplaceConfig,
)
from pudica.clients.shields.counts import Counts, CountsConfig
from pudica.clients.shields.gaussian import NormGaussian, NormGaussianConfig
from pudica.clients.shields.laplace import (
    BatchNormLaplace,
    BatchNormLaplaceConfig,
    PixelLaplace,
    PixelLaplaceConfig,
)
from pudica.clients.shields.mixing import Mixing, MixingConfig
from pudica.clients.shields.obfuscation import (
    AdditiveNoise,
    AdditiveNoiseConfig,
    LowResolution,
    LowResolutionConfig,
)
from pudica.clients.shields.plain import NoShield, NoShieldConfig
from pudica.models.errors import RequestError, unknown_name_error

__all__ = [
    "RECORD_LEVEL",
    "SHIELDS",
    "Guarantee",
    "Mechanism",
    "Shape",
    "Shield",
    "ShieldConfig",
    "build",
    "parse_config",
    "protect_without_noise",
]

SHIELDS: dict[str, tuple[type[ShieldConfig], type[Shield]]] = {
    "batch-norm-laplace": (BatchNormLaplaceConfig, BatchNormLaplace),
    "clip-gaussian": (ClipGaussianConfig, ClipGaussian),
    "clip-laplace": (ClipLaplaceConfig, ClipLaplace),
    "counts": (CountsConfig, Counts),
    "low-resolution": (LowResolutionConfig, LowResolution),
    "mixing": (MixingConfig, Mixing),
    "noise": (AdditiveNoiseConfig, AdditiveNoise),
    "none": (NoShieldConfig, NoShield),
    "norm-gaussian": (NormGaussianConfig, NormGaussian),
    "pixel-laplace": (PixelLaplaceConfig, PixelLaplace),
}
"""The settings class and the shield class for each name."""
RECORD_LEVEL = ("clip-gaussian", "clip-laplace")
"""Shields whose ε holds for a whole example."""


def parse_config(values: Any) -> ShieldConfig:
    """Parse the settings of a shield from a mapping that has its ``name``.

    Raises
    ------
    ValueError
        If there is no such shield, or a setting is wrong (a pydantic ValidationError).
    """
    if isinstance(values, ShieldConfig):
        return values
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ValueError(f"must be a section with a name; allowed: {', '.join(SHIELDS)}")
    name = values["name"]
    if name not in SHIELDS:
        raise unknown_name_error("shield", name, SHIELDS)
    return SHIELDS[name][0].model_validate(dict(values))


def validate_settings(values: Mapping[str, Any]) -> None:
    """Check that a shield has these settings; some may be missing.

    Raises
    ------
    ValueError
        If there is no such shield or setting.
    """
    name = values.get("name")
    if name not in SHIELDS:
        raise unknown_name_error("shield", str(name), SHIELDS)
    schema = SHIELDS[name][0]
    for key in values:
        if key not in schema.model_fields:
            raise ValueError(f"'{name}' has no {key}; allowed: {', '.join(schema.model_fields)}")


def protect_without_noise(shield: Shield, tensor: torch.Tensor) -> torch.Tensor:
    """Apply :meth:`Shield.protect` without the noise, to measure what the noise costs."""
    return (
        shield.bounded(shield.validate_input(tensor)) if isinstance(shield, Mechanism) else tensor
    )


def build(config: ShieldConfig, shape: Shape, batch: int) -> Shield:
    """Build a shield from its settings.

    Parameters
    ----------
    shape : tuple of int
        Shape of one example that the shield receives.
    batch : int
        The maximum number of examples protected together.

    Raises
    ------
    RequestError
        If the shield does not fit this shape or batch.
    """
    try:
        return SHIELDS[config.name][1](config, shape, batch)
    except ValueError as error:
        raise RequestError(f"shield '{config.name}': {error}") from error
