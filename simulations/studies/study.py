"""Studies from Python: what ``pudica study`` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from pudica import analysis
from pudica.analysis.rendering import Tables
from pudica.analysis.runs import open_runs
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.settings import explain_errors
from pudica.simulations.programs.submission import read_run_record
from pudica.simulations.progress import is_notebook, show_progress
from pudica.simulations.runner import handle_signals, make_directory
from pudica.simulations.studies.cells import RUNNING, StudyProgress, Work, run_cells
from pudica.simulations.studies.plan import (
    Cell,
    Config,
    StudyConfig,
    build_experiments,
    expand,
    is_study,
    read_plan,
    read_study,
    write_plan,
)
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.core.recorder import lock
from pudica.strategies.loading import load_experiment


@dataclass(frozen=True)
class Study:
    """Many runs in one directory, a folder each."""

    directory: Path

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The runs that the study is made of."""
        return read_plan(self.directory)

    def frame(self) -> pd.DataFrame:
        """Return all measurements of all runs, with a column for each setting of the study.

        Columns as of :func:`pudica.analysis.load`, then the settings by dotted key, and ``seed``.
        """
        settings = pd.DataFrame([{"run": cell.name, **cell.settings} for cell in self.cells])
        rows = pd.concat([run.frame.assign(run=run.directory.name) for run in self._runs()])
        return rows.merge(settings, on="run", how="left").reset_index(drop=True)

    def compare(self, spread: bool = True) -> pd.DataFrame:
        """Return all methods side by side, seeds together; see :func:`pudica.analysis.compare`."""
        return analysis.compare(self._runs(), spread)

    def tables(self) -> Tables:
        """Return the tables by title, seeds together; see :func:`pudica.analysis.tables`."""
        return analysis.tables(self._runs())

    def status(self) -> pd.DataFrame:
        """Return how far each run is: ``run``, ``status`` and the ``reason`` of a failure."""
        records = {cell.name: read_run_record(self.directory / cell.name) for cell in self.cells}
        rows = [
            {
                "run": name,
                "status": record.get("status", "not begun"),
                "reason": record.get("reason", ""),
            }
            for name, record in records.items()
        ]
        return pd.DataFrame(rows, columns=["run", "status", "reason"])

    def _runs(self) -> list[analysis.runs.Run]:
        begun = [
            self.directory / cell.name
            for cell in self.cells
            if (self.directory / cell.name / "metrics.jsonl").is_file()
        ]
        if not begun:
            raise RequestError(f"{self.directory}: no run of this study has begun")
        return open_runs(begun)


def study(
    experiments: str | Path | Sequence[str | Path] | None = None,
    *,
    set: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002
    seeds: str | int | Sequence[int] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Study:
    """Run experiments over settings and seeds, in parallel, or resume a study that was stopped.

    A run that fails, fails alone: :meth:`Study.status` says why. Each run's result is the same as
    of :func:`pudica.simulations.run` with these settings.

    Parameters
    ----------
    experiments : str, Path, or a sequence of these, optional
        Names from ``pudica list`` or YAML files of experiments; or a single YAML file that
        describes a study. Not needed to resume.
    set : mapping or sequence of mappings, optional
        Settings by dotted key. A list is a list of alternatives, all of which are combined:
        ``{"themis.M": [0.5, 1, 2]}``.
    seeds : str, int or sequence of int, optional
        Such as ``range(5)`` or ``"0-4"``; by default each experiment's own.
    out : str or Path, optional
        Folder in which the study's directory is made; by default ``results``.
    resume : str or Path, optional
        Directory of a study that was stopped: runs that are done stay, the others go on.
    workers : int, optional
        The most runs at a time; by default as many as the CPUs and GPUs allow.
    progress : bool, optional
        As of :func:`pudica.simulations.run`: by default it is shown in a notebook only.

    Returns
    -------
    Study

    Raises
    ------
    RequestError
        If the request is wrong; nothing was started then.

    Examples
    --------
    >>> study("themis-digits", seeds=range(5), set={"themis.M": [0.5, 1]}).compare()
    """
    if resume is not None:
        prepared, directory = prepare_resume(Path(resume), experiments, set, seeds)
    else:
        config = build_config(experiments, set, seeds)
        prepared, directory = prepare(config, Path(out or "results"))
    is_shown = is_notebook() if progress is None else progress
    execute(prepared, directory, workers, quiet=not is_shown)
    return Study(directory)


def build_config(
    experiments: str | Path | Sequence[str | Path] | None,
    settings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    seeds: str | int | Sequence[int] | None = None,
) -> StudyConfig:
    """Return the study of a request; arguments and errors as of :func:`study`."""
    sources = [experiments] if isinstance(experiments, str | Path) else list(experiments or [])
    names = [str(source) for source in sources]
    grids = dict(settings) if isinstance(settings, Mapping) else settings
    listed = seeds if seeds is None or isinstance(seeds, str | int) else list(seeds)
    wanted = {"set": grids or None, "seeds": listed}
    given = {key: value for key, value in wanted.items() if value is not None}
    if not names:
        raise RequestError("name an experiment or a study: pudica study NAME (see `pudica list`)")
    if len(names) == 1 and is_study(names[0]):
        return override(read_study(Path(names[0]), StudyConfig), given)
    name = Path(names[0]).stem if len(names) == 1 else "study"
    return _validate(StudyConfig, {"name": name, "experiments": names, **given})


def override(config: Config, given: Mapping[str, Any]) -> Config:
    """Return a study with other seeds, or with further settings for all its runs."""
    values = config.model_dump()
    if "set" in given:
        further = given["set"] if isinstance(given["set"], Sequence) else [given["set"]]
        values["set"] = [{**own, **more} for own in values["set"] for more in further]
    return _validate(type(config), {**values, **{k: v for k, v in given.items() if k != "set"}})


def _validate(schema: type[Config], values: dict[str, Any]) -> Config:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, schema, "study", []))) from error


def prepare(config: StudyConfig, out: Path) -> tuple[dict[str, Experiment], Path]:
    """Validate all runs of a study, and make its directory.

    Raises
    ------
    RequestError
        If anything is wrong; then nothing is left behind.
    """
    cells = expand(config)
    experiments = build_experiments(cells)
    directory = make_directory(out.absolute(), config.name)
    for name, experiment in experiments.items():
        (directory / name).mkdir()
        write_atomically(directory / name / "experiment.yaml", experiment.to_yaml().encode())
    write_plan(directory, config, cells)
    return experiments, directory


def prepare_resume(
    directory: Path, experiments: object, settings: object, seeds: object
) -> tuple[dict[str, Experiment], Path]:
    """Return the experiments and the directory of a study to resume.

    Raises
    ------
    RequestError
        If there is none, or it is to be resumed with other settings.
    """
    if experiments or settings or seeds is not None:
        raise RequestError("--resume: a study is resumed as it is, without other settings or seeds")
    directory = directory.absolute()
    files = {cell.name: directory / cell.name / "experiment.yaml" for cell in read_plan(directory)}
    return {name: load_experiment(str(path), []) for name, path in files.items()}, directory


def execute(
    experiments: Mapping[str, Experiment],
    directory: Path,
    workers: int | None,
    quiet: bool,
    work: Work = RUNNING,
) -> dict[str, str]:
    """Run what is not done yet, show its progress, and return why some runs failed.

    Raises
    ------
    RequestError
        If another process runs the study; or as :func:`run_cells`.
    """
    with closing(lock(directory)), handle_signals(), _watch(directory.name, quiet) as report:
        return run_cells(experiments, directory, workers, report, work)


@contextmanager
def _watch(name: str, quiet: bool) -> Iterator[Any]:
    if quiet:
        yield None
        return
    with show_progress() as display:

        def report(progress: StudyProgress) -> None:
            display.update(
                {"stage": name, "done": progress.done, "total": progress.total, "unit": "run"}
            )
            display.update_nodes(progress.running)

        yield report
