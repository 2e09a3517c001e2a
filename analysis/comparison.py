"""All systems in one table: what each method achieves, promises and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from pudica.analysis.privacy import claims, verdict
from pudica.analysis.runs import Run, RunPaths, open_runs
from pudica.analysis.spread import average_seeds
from pudica.clients.runtime.systems import systems
from pudica.clients.shields import Guarantee
from pudica.strategies.core.releases import FILE

FIGURES = ("accuracy", "edge_mmacs", "bytes", "seconds")
COLUMNS = (
    *("run", "system", "case", "method", "data", "accuracy", "claimed", "holds"),
    *("edge_mmacs", "bytes", "seconds"),
)
NO_GUARANTEE = Guarantee("record", None)


def compare(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return all methods of all systems side by side, a row per run and case.

    Runs are named, and errors raised, as by :func:`pudica.analysis.load`.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        Of any systems.
    spread : bool
        Whether runs that differ only by their seed are taken together; see
        :func:`pudica.analysis.spread.average_seeds` for the intervals ``…_ci`` and for ``n``.

    Returns
    -------
    DataFrame
        ``run, system, case``; ``method``, what protects; ``data``; ``accuracy`` on test images in
        per cent, as whoever uses the system gets it (THEMIS: under noise, mean over participants);
        ``claimed`` by the shield's paper, and what ``holds`` for a training record; ``edge_mmacs``,
        multiplications that networks cost the edge for one image, in millions (missing where
        nobody knows them, as with participants' own models); ``bytes`` exchanged and ``seconds``
        taken for the case, with its share of what all cases need in common.
    """
    opened = open_runs(runs)
    rows = [row for run in opened for row in _iterate_methods(run)]
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(FIGURES, "float64"))
    return average_seeds(table, opened, ["case"], spread)


def _iterate_methods(run: Run) -> Iterator[dict[str, Any]]:
    system = systems().get(run.info.get("system", ""))
    if system is None or not system.methods:
        return
    measured = list(system.part("methods")(run))
    claimed, held = _read_promises(run)
    for row in measured:
        case = row["case"]
        yield {
            "run": run.name,
            "system": system.name,
            "data": run.settings.get("data", {}).get("name", ""),
            **row,
            "claimed": str(claimed.get(case, "nothing")),
            "holds": str(held.get(case, NO_GUARANTEE)),
            "bytes": _share(run.info.get("stage_bytes", {}), case, len(measured)),
            "seconds": _share(run.info.get("seconds", {}), case, len(measured)),
        }


def _read_promises(run: Run) -> tuple[dict[str, Guarantee], dict[str, Guarantee]]:
    """Return what is claimed and what holds by case; nothing of a system without a ledger."""
    if not (run.directory / FILE).is_file():
        return {}, {}
    return claims(run.directory), verdict(run.directory)


def _share(stages: Mapping[str, float], case: str, cases: int) -> float | None:
    """Return the sum over a case's stages, with its share of those that all cases have in common.

    None if nothing was kept by stage, as in runs of older versions.
    """
    own = sum(value for stage, value in stages.items() if stage.endswith(f"/{case}"))
    common = sum(value for stage, value in stages.items() if "/" not in stage)
    return own + common / cases if stages else None
