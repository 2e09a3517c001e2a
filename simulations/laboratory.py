"""Experiments from Python: what ``pudica run`` does, for notebooks and scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pudica import analysis
from pudica.analysis.drawing import Figures
from pudica.analysis.rendering import Tables, build_heading, render_frame, wrap_html
from pudica.models.errors import RequestError
from pudica.models.printable import escape_html
from pudica.simulations import runner
from pudica.simulations.console import shorten_path
from pudica.simulations.progress import is_notebook
from pudica.strategies.core.experiment import Experiment


@dataclass(frozen=True)
class Run:
    """A run that is done, with all its files in a directory; a notebook shows its tables."""

    directory: Path

    def frame(self) -> pd.DataFrame:
        """Return all measurements; see :func:`pudica.analysis.load`."""
        return analysis.load(self.directory)

    def tables(self) -> Tables:
        """Return the tables by title; see :func:`pudica.analysis.tables`."""
        return analysis.tables(self.directory)

    def figures(self) -> Figures:
        """Draw the figures, which a notebook shows; see :func:`pudica.analysis.figures`."""
        return analysis.figures(self.directory)

    def plot(self) -> list[Path]:
        """Draw the figures and return their files; see :func:`pudica.analysis.plot`."""
        return analysis.plot(self.directory)

    def _repr_html_(self) -> str:
        info = analysis.describe(self.directory)
        about = f"{info['status']}, seed {info['seed']}, in {shorten_path(self.directory)}"
        parts = [f"<p><b>{escape_html(info['experiment'])}</b> {escape_html(about)}</p>"]
        for title, frame in self.tables().items():
            is_open = " open" if len(parts) == 1 else ""
            summary = f"<summary>{escape_html(build_heading(title, frame))}</summary>"
            parts.append(f"<details{is_open}>{summary}{render_frame(frame)}</details>")
        return wrap_html("".join(parts))


def run(
    experiment: str | Path | None = None,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002
    engine: str = "ray",
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> Run:
    """Run an experiment, or resume one that was stopped.

    Parameters
    ----------
    experiment : str or Path, optional
        A name from ``pudica list``, or a YAML file; not needed to resume.
    set : mapping, optional
        Settings to override: ``{"seed": 3, "training.epochs": 2}``.
    engine : {"ray", "inprocess", "flower"}
    out : str or Path, optional
        Folder in which the run's directory is made; by default ``results``.
    resume : str or Path, optional
        Directory of a run that was stopped. One that is done is returned as it is.
    progress : bool, optional
        Whether to show progress, elsewhere than in a notebook on standard error. By default it is
        shown in a notebook only.

    Returns
    -------
    Run

    Raises
    ------
    RequestError
        If the request is wrong; nothing was started then.
    Exception
        If the run fails, with a note of how to resume it.
    KeyboardInterrupt
        If it is stopped. The message says how to resume it.

    Examples
    --------
    >>> board = run("themis-digits", set={"seed": 3}, engine="inprocess").tables()
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    source = str(experiment) if experiment is not None else None
    overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in (set or {}).items()]
    stopped = Path(resume) if resume is not None else None
    place = Path(out or "results")
    prepared, directory = runner.prepare(source, overrides, place, stopped, engine)
    if stopped is None or not runner.is_done(directory):
        is_shown = is_notebook() if progress is None else progress
        _execute(prepared, directory, engine, quiet=not is_shown)
    return Run(directory)


def _execute(experiment: Experiment, directory: Path, engine: str, quiet: bool) -> None:
    """Run the experiment; an error, or a stop, says how to resume it."""
    hint = f"resume with: run(resume={str(shorten_path(directory))!r}, engine={engine!r})"
    try:
        runner.execute(experiment, directory, engine, quiet)
    except RequestError:
        raise
    except KeyboardInterrupt:
        # Where it was stopped says nothing, in many lines.
        raise KeyboardInterrupt(f"stopped; {hint}") from None
    except Exception as error:
        error.add_note(hint)
        raise
