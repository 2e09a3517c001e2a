"""How often devices say how often they were right, and what that costs under a guarantee."""

from __future__ import annotations

from typing import Literal

from pudica.clients.assignments import Report, is_guaranteed
from pudica.clients.shields import ShieldConfig
from pudica.strategies.split.config import SplitConfig

SHARE = 0.2
"""Of a test image's budget, for answers about it, where its activation is sent, too."""

Reports = dict[Literal["validation", "test"], Report]


def reports(settings: SplitConfig, shield: ShieldConfig) -> Reports:
    """Return how many answers each part's images get, and the ε of each.

    Parameters
    ----------
    shield : ShieldConfig
        With its ε.
    """
    own = getattr(shield, "epsilon", None)
    promised = is_guaranteed(shield, settings.front, settings.noise)
    epsilon = (settings.budget.epsilon if settings.budget else own) if promised else None
    each = settings.budget.report if settings.budget else None
    found: Reports = {}
    if count := settings.validations:
        found["validation"] = _report(count, epsilon, each)
    if count := settings.test_answers:
        part = epsilon * SHARE if epsilon and settings.test_releases else epsilon
        found["test"] = _report(count, part, each)
    return found


def _report(count: int, total: float | None, each: float | None) -> Report:
    """Return answers that share an ε, if each has none of its own; without one, they are exact."""
    return Report(count=count, epsilon=total and (each or total / count))


def compute_test_share(settings: SplitConfig) -> float:
    """Return the ε that answers about a test image take from what its activation may spend."""
    budget = settings.budget
    if budget is None or not settings.test_releases:
        return 0.0
    return settings.test_answers * budget.report if budget.report else budget.epsilon * SHARE
