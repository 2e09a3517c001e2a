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
from pudica.simulations import runner


@dataclass(frozen=True)
class Run:
    """A run that is done, with all its files in a directory."""

    directory: Path

    def frame(self) -> pd.DataFrame:
        """Return all measurements; see :func:`pudica.analysis.load`."""
        return analysis.load(self.directory)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by title; see :func:`pudica.analysis.tables`."""
        return analysis.tables(self.directory)

    def plot(self) -> list[Path]:
        """Draw the figures and return their files; see :func:`pudica.analysis.plot`."""
        return analysis.plot(self.directory)


def run(
    experiment: str | Path | None = None,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002
    engine: str = "ray",
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
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
    progress : bool
        Whether to show progress on standard error.

    Returns
    -------
    Run

    Raises
    ------
    RequestError
        If the request is wrong; nothing was started then.

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
        runner.execute(prepared, directory, engine, quiet=not progress)
    return Run(directory)
