"""A case of a finished run once more, in this process, to see what crosses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pudica.analysis.runs import Run, open_run
from pudica.clients import protocol
from pudica.models.errors import RequestError
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import (
    build_run_config,
    build_server_context,
    restore_identity,
)
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.wire_log import Exchanged, WireLog
from pudica.strategies.loading import load_experiment

MEASURED = ("training", "validation", "test")
"""Stages whose measurements are the same in a replay."""
TAGS = ["stage", "round", "node", "metric", "value", "release"]


def replay(
    run: Run, case: str, note: Callable[[Exchanged], None], notify: Callable[[str], None]
) -> None:
    """Run a case again as it was, and show each exchange to ``note``.

    Everything that crosses is the same to the last bit where noise is seeded; secret noise is
    drawn anew.

    Parameters
    ----------
    notify : callable
        Called with a line where the replay differs from the run, as on another CPU.

    Raises
    ------
    RequestError
        The nodes' images are not here, or another version of Pudica, which does otherwise, wrote
        the run.
    """
    from pudica.clients.app import app as client_app
    from pudica.strategies.app import app as server_app

    if run.info.get("engine") == "deployment":
        raise RequestError(f"{run.name}: was run with real nodes, whose images are not here")
    experiment = _only(load_experiment(str(run.directory / "experiment.yaml"), []), case)
    with tempfile.TemporaryDirectory() as folder, restore_identity():
        directory = Path(folder) / run.directory.name
        config = build_run_config(experiment, directory, "inprocess")
        grid = InProcessGrid(client_app, len(experiment.names()), config)
        server_app(WireLog(grid, note), build_server_context(config))
        _compare(run, open_run(directory), case, notify)


def _only(experiment: Experiment, case: str) -> Experiment:
    """Return an experiment of one case, without loggers."""
    section = getattr(experiment, experiment.system)
    cases = {case: section.cases[case]} if section.cases else {}
    own = {experiment.system: section.model_copy(update={"cases": cases}), "log": ()}
    return experiment.model_copy(update=own)


def _compare(run: Run, again: Run, case: str, notify: Callable[[str], None]) -> None:
    before, now = (_measurements(each, case) for each in (run, again))
    if _is_secret(run, case):
        notify(f"{case}: its noise is secret, and drawn anew")
        return
    if before.equals(now):
        return
    if run.info.get("code") != protocol.code_fingerprint():
        raise RequestError(
            f"{run.name}: another version of Pudica wrote it, and case '{case}' comes out "
            "otherwise today; run the experiment anew"
        )
    notify(
        f"{case}: comes out otherwise on this machine; what is attacked is the run as it is here"
    )


def _is_secret(run: Run, case: str) -> bool:
    """Tell whether a case draws from what nobody else knows, so that it can't be repeated."""
    section = run.settings.get(str(run.info["system"]), {})
    own = {**section, **(section.get("cases") or {}).get(case, {})}
    private = own.get("dp") or {}
    return "secret" in (own.get("noise"), own.get("keys"), private.get("noise"))


def _measurements(run: Run, case: str) -> pd.DataFrame:
    frame = run.frame[run.frame["stage"].isin(MEASURED) & (run.frame["case"] == case)]
    return frame[TAGS].reset_index(drop=True)
