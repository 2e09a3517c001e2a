"""What the organiser or the cloud runs: Flower strategies, and the laboratory's experiments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pudica.strategies.core.reliable_grid import ReliableGrid, TooFewParticipants
    from pudica.strategies.facemix.strategy import FaceMix
    from pudica.strategies.split.strategy import SplitLearning
    from pudica.strategies.themis.strategy import Themis

__all__ = ["FaceMix", "ReliableGrid", "SplitLearning", "Themis", "TooFewParticipants"]

_HOMES = {
    "FaceMix": "facemix.strategy",
    "ReliableGrid": "core.reliable_grid",
    "SplitLearning": "split.strategy",
    "Themis": "themis.strategy",
    "TooFewParticipants": "core.reliable_grid",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: PyTorch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
