"""No shield: the baseline for all others."""

from __future__ import annotations

from typing import Literal

import torch

from pudica.clients.shields.base import NO_NOISE, Guarantee, Shield, ShieldConfig
from pudica.models.randomness import Randomness


class NoShieldConfig(ShieldConfig):
    """Nothing to set."""

    name: Literal["none"] = "none"


class NoShield(Shield):
    """Passes everything through unchanged."""

    schema = NoShieldConfig

    def _protect(
        self,
        tensor: torch.Tensor,
        randomness: Randomness,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None]:
        """Return the tensor unchanged."""
        return self.validate_input(tensor), None

    def guarantee(self) -> Guarantee:
        """Return that there is no guarantee."""
        return NO_NOISE
