"""What every attack is: it takes what an adversary has, and says how far it came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.stats import binomtest

Metrics = dict[str, float]

SHOWN = 8
"""Images in a figure's row."""
CLEAR = "_in_the_clear"
"""How names of a positive control's measurements end."""
CONFIDENCE = 0.95


class Effort(NamedTuple):
    """How much effort attacks spend: epochs of training, images to rebuild, requests to unmix."""

    epochs: int
    images: int
    requests: int
    seed: int


class Outcome(NamedTuple):
    """What an attack measured, also of each attribute, and the rows of its figure if any."""

    metrics: Metrics
    pictures: Mapping[str, np.ndarray]
    attributes: Mapping[str, Metrics] = {}


class Attack(ABC):
    """One attack; subclasses are registered by :mod:`pudica.analysis.attacks.registry`.

    Each also measures a positive control, where nothing protects: an attack that fails there proves
    nothing. Names of the control's measurements end with ``_in_the_clear``; ``chance`` is what
    blind guessing reaches.

    Attributes
    ----------
    kind : str
        Its name.
    target : type
        What it attacks: a view, or a view with the images behind it, by which it is judged.
    """

    kind: ClassVar[str]
    target: ClassVar[type]

    def explain_unfit(self, target: Any) -> str:
        """Return why the attack does not apply to a target, or "" if it does."""
        if isinstance(target, self.target):
            return self._explain_unfit(target)
        return f"there is a {type(target).__name__}, it needs a {self.target.__name__}"

    def _explain_unfit(self, target: Any) -> str:  # noqa: ARG002
        """Return the same of a target of the right type."""
        return ""

    @abstractmethod
    def run(self, target: Any, effort: Effort) -> Outcome:
        """Attack a target."""


def count_successes(hits: np.ndarray) -> Metrics:
    """Return the rate of successes (n,), and the ends of its 95 % interval (Wilson)."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    ends = {"success_low": float(interval.low), "success_high": float(interval.high)}
    return {"success": float(hits.mean()), **ends}
