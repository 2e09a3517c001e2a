"""A shield alone, as an audit attacks it: its adversary chooses what is protected."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from pudica.clients.shields import Mechanism, Shield, protect_without_noise
from pudica.models.randomness import numpy_generator


@dataclass(frozen=True)
class ShieldTarget:
    """The shield of a case, bound to a shape and a batch size.

    Attributes
    ----------
    name : str
        Of run and case.
    shield : Shield
    """

    name: str
    shield: Shield

    def isolate(self) -> Shield:
        """Return a copy on the CPU; for one record at a time, where the batch does not matter."""
        shield = copy.deepcopy(self.shield).cpu()
        return shield if shield.batch_matters else shield.bind(shield.shape, 1)


@torch.no_grad()
def draws_noise(shield: Shield) -> bool:
    """Tell whether a shield's output depends on what it draws."""
    shield = copy.deepcopy(shield).cpu()
    batch, _ = shield.neighbours()
    one, other = (shield.protect(batch, numpy_generator(seed, "noise"))[0] for seed in range(2))
    return not torch.equal(one, other)


def expected(shield: Shield, x: torch.Tensor) -> torch.Tensor:
    """Return what a shield releases of a batch but for noise, as an adversary computes it.

    Differentiable where the shield is. Of one that mixes by a key it is the batch as it is.
    """
    if isinstance(shield, Mechanism):
        return protect_without_noise(shield, x)
    if shield.has_inverse or draws_noise(shield):
        return x
    return shield.protect(x, numpy_generator(0, "unused"))[0]
