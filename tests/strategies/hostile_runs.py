"""Tiny runs of every system in this process, and what they measure."""

from __future__ import annotations

import json
from pathlib import Path

from competition_helpers import TINY as COMPETITION

import pudica.clients.app
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.loading import load_experiment

# Central DLMT and split training of FaceMix need everybody, by design: they stop, to be resumed.
EXPERIMENTS = {
    "themis": [
        "themis-digits",
        *COMPETITION,
        "themis.steps_per_visit=2",
        "themis.cases={joint: {}, sequential: {update: sequential}, averaged: {update: averaged}}",
    ],
    "split": [
        "split-digits",
        "split.epochs=2",
        "data.limit=120",
        "split.batches_per_message=2",
        "split.cases={average: {}, handoff: {front: handoff}, private: {front: private}}",
    ],
    "dlmt": [
        "dlmt-digits",
        "data.limit=120",
        "dlmt.training.epochs=2",
        "dlmt.cases={federated: {shield: MAT(9), train: federated, local_epochs: 1}}",
    ],
    "facemix": [
        "facemix-digits",
        "data.limit=120",
        "facemix.edges=3",
        "facemix.training.epochs=1",
        "facemix.cases={mixed: {}}",
    ],
}
# Of what a run measures, this differs where a node fails, or from run to run.
UNEQUAL = {"dropouts", "seconds"}


def measured(
    settings: list[str], directory: Path, kind: type[InProcessGrid] = InProcessGrid
) -> list[str]:
    """Run an experiment to its end, and return what it measures.

    How often a node was asked in vain differs: one that fails is not asked for a while.

    Parameters
    ----------
    settings : list of str
        The experiment's name, and what is changed.
    kind : type
        Of the grid.
    """
    wanted = load_experiment(settings[0], settings[1:])
    config = build_run_config(wanted, directory, "inprocess")
    server_app(
        kind(pudica.clients.app.app, len(wanted.names()), config), build_server_context(config)
    )
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return sorted(
        json.dumps(row) for row in rows if row["metric"] not in UNEQUAL and row["stage"] != "costs"
    )
