"""What a participant runs: it owns private data, a private model, keys."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pudica.clients.dlmt.owner import Owner
    from pudica.clients.facemix.edge import InferenceEdge
    from pudica.clients.split.edge import Edge
    from pudica.clients.themis.participant import Participant

__all__ = ["Edge", "InferenceEdge", "Owner", "Participant"]

_HOMES = {
    "Edge": "split.edge",
    "InferenceEdge": "facemix.edge",
    "Owner": "dlmt.owner",
    "Participant": "themis.participant",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: PyTorch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
