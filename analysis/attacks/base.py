"""What every attack is: it takes what an adversary has, and says how far it came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

Metrics = dict[str, float]

GOALS = {
    "image": "the right one of n images is named, or drawn so that it is recognised",
    "attribute": "the class or an attribute of an image is read off",
    "identity": "a person is recognised",
    "membership": "an image is found to have been a training image",
    "record": "two neighbouring records are told apart",
    "key": "what disguises images is undone without its key",
}
"""What attacks are after, and what their success is."""
SHOWN = 8
"""Images in a figure's row."""
ORIGINAL, CROSSED, DRAWN = "original", "what crossed", "drawn"
"""Rows of a figure: true images, their last releases, and the best that an attack drew."""
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
    goal : str
        One of :data:`GOALS`.
    further : mapping of str to str
        Other goals that it reaches, and the name of the measurement that says how often. Of these
        a blind guess reaches nothing.
    assumes : str
        What it needs beyond a case's view, such as images known in plain; empty for nothing.
    target : type
        What it attacks: a view, or a view with the images behind it, by which it is judged.
    """

    kind: ClassVar[str]
    goal: ClassVar[str]
    further: ClassVar[Mapping[str, str]] = {}
    assumes: ClassVar[str] = ""
    target: ClassVar[type]

    def find_target(self, targets: Sequence[Any]) -> Any:
        """Return the first of a case's targets that it applies to, or None."""
        return next((each for each in targets if not self.explain_unfit([each])), None)

    def explain_unfit(self, targets: Sequence[Any]) -> str:
        """Return why the attack applies to none of a case's targets, or "" if it does to one."""
        own = [target for target in targets if isinstance(target, self.target)]
        if not own:
            found = ", ".join(sorted({type(target).__name__ for target in targets})) or "nothing"
            return f"there is {found}, it needs a {self.target.__name__}"
        reasons = [self._explain_unfit(target) for target in own]
        return "" if "" in reasons else reasons[0]

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


def balance_successes(guesses: np.ndarray, labels: np.ndarray) -> Metrics:
    """Return the balanced accuracy of guesses (n,), and the ends of its 95 % interval (normal).

    The mean over classes of the share of right guesses; each class is a sample of its own.
    """
    each = [(guesses == labels)[labels == label] for label in np.unique(labels)]
    rates, counts = (np.array([own.mean() for own in each]), np.array([len(own) for own in each]))
    rate = float(rates.mean())
    # Agresti and Coull's two more successes and failures keep the width from being 0 at the ends.
    moderate = (rates * counts + 2) / (counts + 4)
    spread = np.sqrt((moderate * (1 - moderate) / (counts + 4)).sum()) / len(each)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2) * spread)
    return {
        "success": rate,
        "success_low": max(0.0, rate - reach),
        "success_high": min(1.0, rate + reach),
    }
