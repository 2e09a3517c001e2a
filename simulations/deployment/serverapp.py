"""The ServerApp of a deployment: the one of every run, beside its organiser's folder.

A run's configuration goes to every node, so nothing that nodes are not to know can be in it:
where the organiser's folder is, an environment variable says.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pudica.strategies.app import run_from_config

ORGANISER_DIR = "PUDICA_ORGANISER"
"""The environment variable that names the organiser's folder."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that ``run_config`` names, with the nodes that are registered."""
    run_from_config(grid, context.run_config, Path(os.environ[ORGANISER_DIR]))
