"""The ServerApp: reads the experiment and runs its system."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pudica.models.compute import Compute
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.registry import home, placed
from pudica.strategies.dlmt.system import learn_disguised
from pudica.strategies.facemix.system import infer_mixed
from pudica.strategies.loading import load_experiment
from pudica.strategies.split.system import learn
from pudica.strategies.themis.competition import compete

SYSTEMS: dict[str, Callable[[Grid, Any, Recorder], None]] = {
    "dlmt": learn_disguised,
    "facemix": infer_mixed,
    "split": learn,
    "themis": compete,
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that ``run_config`` names, on whatever engine the grid is of."""
    config, folder = context.run_config, home()
    source = placed(folder, str(config["experiment"]))
    experiment = load_experiment(source, shlex.split(str(config["set"])))
    out = placed(folder, str(config["out"]))
    directory = Path(out) if out else new_directory(Path("results"), experiment)
    run(grid, experiment, Recorder(directory, experiment, str(config.get("engine", "flower"))))


def run(grid: Grid, experiment: Experiment, recorder: Recorder) -> None:
    """Run the experiment and record how it ended."""
    try:
        with Compute(experiment.client).threads():
            SYSTEMS[experiment.system](grid, experiment, recorder)
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


def new_directory(out: Path, experiment: Experiment) -> Path:
    """Return a directory for a new run that is not there yet: name, time, and a counter."""
    stem = f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = [out / stem, *(out / f"{stem}-{number}" for number in range(2, 1000))]
    return next(path for path in candidates if not path.exists())
