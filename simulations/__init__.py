"""Running apps and experiments: ``simulate``, ``run``, ``study``, command line, deployment."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pudica.simulations.laboratory import Run, run
    from pudica.simulations.simulation import simulate
    from pudica.simulations.studies.frontier import Frontier, run_frontier
    from pudica.simulations.studies.study import Study, study

__all__ = ["Frontier", "Run", "Study", "run", "run_frontier", "simulate", "study"]

_HOMES = {
    **dict.fromkeys(("Run", "run"), "laboratory"),
    **dict.fromkeys(("Frontier", "run_frontier"), "studies.frontier"),
    **dict.fromkeys(("Study", "study"), "studies.study"),
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: PyTorch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
