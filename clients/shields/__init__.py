"""What stands between private data and the wire, one file a family.

A *mechanism* has a differential-privacy guarantee, an *obfuscation* has none. Both are a
:class:`Shield`.
"""

from __future__ import annotations

from clients.shields.base import Guarantee, Mechanism, Shape, Shield, ShieldConfig
from clients.shields.clipping import (
    ClipGaussian,
    ClipGaussianConfig,
    ClipLaplace,
    ClipLaplaceConfig,
)
from clients.shields.gaussian import NormGaussian, NormGaussianConfig
from clients.shields.laplace import (
    BatchNormLaplace,
    BatchNormLaplaceConfig,
    PixelLaplace,
    PixelLaplaceConfig,
)
from clients.shields.plain import NoShield, NoShieldConfig
from models.errors import RequestError

__all__ = ["SHIELDS", "Guarantee", "Mechanism", "Shape", "Shield", "build"]

SHIELDS: dict[str, tuple[type[ShieldConfig], type[Shield]]] = {
    "batch-norm-laplace": (BatchNormLaplaceConfig, BatchNormLaplace),
    "clip-gaussian": (ClipGaussianConfig, ClipGaussian),
    "clip-laplace": (ClipLaplaceConfig, ClipLaplace),
    "none": (NoShieldConfig, NoShield),
    "norm-gaussian": (NormGaussianConfig, NormGaussian),
    "pixel-laplace": (PixelLaplaceConfig, PixelLaplace),
}
"""Settings and shield of each name."""


def build(config: ShieldConfig, shape: Shape, batch: int) -> Shield:
    """Return the shield of some settings.

    Parameters
    ----------
    shape : tuple of int
        Of one example where the shield stands.
    batch : int
        The most examples that are protected together.

    Raises
    ------
    RequestError
        If the shield does not fit them.
    """
    try:
        return SHIELDS[config.name][1](config, shape, batch)
    except ValueError as error:
        raise RequestError(f"shield '{config.name}': {error}") from error
