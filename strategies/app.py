"""The ServerApp: reads the experiment and runs its system."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pudica.clients.runtime.systems import systems
from pudica.models.compute import Compute
from pudica.strategies.core.cohort import Cohort
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.registry import NodeRegistry
from pudica.strategies.loading import load_experiment

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that ``run_config`` names, on whatever engine the grid is of."""
    run_from_config(grid, context.run_config)


def run_from_config(
    grid: Grid, config: Mapping[str, Any], organiser_dir: Path | None = None
) -> None:
    """Run the experiment that a run's configuration names.

    Parameters
    ----------
    config : mapping
        ``experiment``, ``set``, ``out``, ``engine``; see pyproject.toml.
    organiser_dir : Path, optional
        Of a deployment: paths in the configuration are below it, and who may take part stands
        there.
    """
    source = resolve_path(organiser_dir, str(config["experiment"]))
    experiment = load_experiment(source, shlex.split(str(config["set"])))
    out = resolve_path(organiser_dir, str(config["out"]))
    directory = Path(out) if out else new_directory(Path("results"), experiment.name)
    recorder = Recorder(directory, experiment, str(config.get("engine", "flower")))
    run(grid, experiment, recorder, NodeRegistry(organiser_dir) if organiser_dir else None)


def resolve_path(folder: Path | None, path: str) -> str:
    """Return a path of a run's configuration, which in a deployment is below that folder."""
    return str(folder / path) if folder and path else path


def run(
    grid: Grid,
    experiment: Experiment,
    recorder: Recorder,
    registry: NodeRegistry | None = None,
) -> None:
    """Run the experiment and record how it ended."""
    cohort = Cohort.on(grid, experiment.client, recorder, registry)
    try:
        if registry is None:  # real nodes keep what they have noted of their data to themselves
            recorder.note_data(experiment.load_shared().notes)
        with Compute(experiment.client).use_threads():
            systems()[experiment.system].part("run")(cohort, experiment)
    except KeyboardInterrupt:
        recorder.close("interrupted", "stopped from the keyboard")
        raise
    except SystemExit:
        # So does Flower end an app whose server is gone; who started the run knows more.
        recorder.close("interrupted", "its process was ended")
        raise
    except BaseException as error:
        recorder.close("failed", f"{type(error).__name__}: {error}")
        raise
    recorder.close("done")


def new_directory(out: Path, name: str) -> Path:
    """Return a directory that is not there yet: a run's name, the time, and a counter."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = [out / stem, *(out / f"{stem}-{number}" for number in range(2, 1000))]
    return next(path for path in candidates if not path.exists())
