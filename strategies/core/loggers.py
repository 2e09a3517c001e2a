"""TensorBoard, MLflow and Weights & Biases, each as a logger of a run's measurements.

Their libraries are optional, and imported only where they are asked for.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from pudica.models.errors import RequestError
from pudica.models.files import file_lock

LoggerName = Literal["tensorboard", "mlflow", "wandb"]
Row = Mapping[str, Any]

LONGEST_CURVE = 240  # of 250 that MLflow allows: a number may follow
LONGEST_KEY, LONGEST_VALUE, MOST_PARAMS, MOST_METRICS = 250, 6000, 100, 1000
"""MLflow's limits."""
MLFLOW_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run.

    Attributes
    ----------
    directory : Path
        Its name is the run's.
    experiment : str
        The experiment's name.
    settings : dict
        What the library may show of the experiment's.
    id : str
        By which the logger knows the run, if it was begun before; else empty.
    """

    directory: Path
    experiment: str
    settings: Mapping[str, Any]
    id: str = ""


class Logger(ABC):
    """A library that shows measurements, and the run it is shown.

    Attributes
    ----------
    extra : str
        Of Pudica, which installs the library.
    module : str
        What is imported.
    forbidden : str
        Pattern of a character that no part of a curve's name may hold.
    seconds_at_risk : float
        For how long the library may keep what it has logged where a kill takes it away.
    id : str
        By which the library knows the run.
    """

    extra: ClassVar[str]
    module: ClassVar[str]
    forbidden: ClassVar[str] = r"[^\w.-]"
    seconds_at_risk: ClassVar[float] = 0.0

    def __init__(self, run: LoggedRun) -> None:
        self.id = run.id
        self._curves: dict[tuple[str, ...], str] = {}

    @classmethod
    def check(cls) -> None:
        """Check that it can be used here; RequestError if not."""
        try:
            found = import_module(cls.module).__file__  # None: just a folder of that name
        except ImportError:
            found = None
        if found is None:
            raise RequestError(
                f"log: {cls.extra} is not installed here; pip install 'pudica[{cls.extra}]'"
            )

    @abstractmethod
    def log(self, rows: Sequence[Row], first: int) -> None:
        """Write measurements, the first of which is the run's ``first``."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Write the run's end: ``done``, ``failed`` or ``interrupted``."""

    def curve(self, row: Row) -> str:
        """Return the name of the curve that a measurement is a point of.

        It is ``case/stage/metric/node``, and what else the row says. Two curves never share one,
        even if they differ in forbidden characters only; rows must come in the run's order.
        """
        parts = _list_parts(row)
        if parts not in self._curves:
            clean = [re.sub(self.forbidden, "_", part) for part in parts]
            name = "/".join(part if part.strip(".") else "_" for part in clean)[:LONGEST_CURVE]
            taken = name in self._curves.values()
            self._curves[parts] = f"{name}-{len(self._curves)}" if taken else name
        return self._curves[parts]


def _list_parts(row: Row) -> tuple[str, ...]:
    """Return the case, stage, metric and node of a measurement, and its tags."""
    named = ("case", "stage", "metric", "node")
    others = row.keys() - {*named, "round", "value"}
    tags = [f"{key}-{row[key]}" for key in sorted(others) if row[key] not in ("", None)]
    return (*(str(row[key]) for key in named if row.get(key)), *tags)


class TensorBoardLogger(Logger):
    """Event files in the folder ``tensorboard`` of the run's directory."""

    extra = "tensorboard"
    module = "torch.utils.tensorboard"

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.directory / "tensorboard"))
        if not run.id:
            text = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True)
            self._writer.add_text("experiment", f"```\n{text}```")
        self.id = run.directory.name

    def log(self, rows: Sequence[Row], first: int) -> None:  # noqa: ARG002
        """Write measurements to the event file."""
        for row in rows:
            self._writer.add_scalar(self.curve(row), row["value"], row["round"])
        self._writer.flush()

    def close(self, status: str) -> None:  # noqa: ARG002
        """Close the event file."""
        self._writer.close()


class MlflowLogger(Logger):
    """A run at the server of ``MLFLOW_TRACKING_URI``; else in ``mlflow.db`` beside the run."""

    extra = module = "mlflow"

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        getLogger("mlflow.store.db").setLevel(WARNING)  # it tells of each table it creates
        folder = run.directory.parent.absolute()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._connect(server, folder)
        if run.id:
            self._client.update_run(run.id, status="RUNNING")
        else:
            self._create(run, None if server else (folder / "mlruns").as_uri())

    def _connect(self, server: str | None, folder: Path) -> Any:
        """Return a client of the server, or of the folder's database."""
        from mlflow import MlflowClient

        if server:
            return MlflowClient(server)
        # If two runs of a study created the tables at the same time, both would fail.
        with file_lock(folder / ".mlflow.lock"):
            return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")

    def _create(self, run: LoggedRun, artifacts: str | None) -> None:
        from mlflow.entities import Param

        experiment = self._get_experiment(run.experiment, artifacts)
        self.id = self._client.create_run(experiment, run_name=run.directory.name).info.run_id
        # Two values of one name would be an error.
        texts = {
            re.sub(self.forbidden, "_", key)[:LONGEST_KEY]: text
            for key, text in _flatten(run.settings)
        }
        params = (Param(key, text[:LONGEST_VALUE]) for key, text in texts.items())
        while batch := list(islice(params, MOST_PARAMS)):
            self._client.log_batch(self.id, params=batch)

    def _get_experiment(self, name: str, artifacts: str | None) -> str:
        """Return the id of MLflow's experiment, which is created if need be."""
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                known = self._client.get_experiment_by_name(name)
                if known is None:  # else another run was faster
                    raise
        return str(known.experiment_id)

    def log(self, rows: Sequence[Row], first: int) -> None:  # noqa: ARG002
        """Write measurements, as many at once as MLflow takes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = (Metric(self.curve(r), float(r["value"]), now, int(r["round"])) for r in rows)
        while batch := list(islice(points, MOST_METRICS)):
            self._client.log_batch(self.id, metrics=batch)

    def close(self, status: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.id, MLFLOW_STATUS[status])


class WandbLogger(Logger):
    """A run of the project ``WANDB_PROJECT``, or ``pudica``.

    Of what Weights & Biases gathers by itself it is sent nothing: not the terminal's output, nor
    code, packages, command line or machine.
    """

    extra = module = "wandb"
    forbidden = "[^A-Za-z0-9_]"
    # It writes files every 15 s, and ignores a step that it has when it is given it again.
    seconds_at_risk = 60.0

    @classmethod
    def check(cls) -> None:
        """Check that somebody is logged in, too, unless it is to be offline."""
        super().check()
        import wandb

        online = wandb.setup().settings.mode in ("online", "run", "shared")
        if online and not wandb.login(prompt=False, verify=False):
            raise RequestError(
                "log: wandb has no API key; `wandb login` once, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline and `wandb sync` later"
            )

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        import wandb

        private = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.id = run.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "pudica",
            name=run.directory.name,
            id=self.id,
            resume="allow",
            reinit="create_new",
            dir=run.directory,
            config=dict(run.settings),
            settings=private,
        )
        self._run.define_metric("*", step_metric="round")

    def log(self, rows: Sequence[Row], first: int) -> None:
        """Write measurements; each is a step of its own, and ``round`` the horizontal axis."""
        for step, row in enumerate(rows, first):
            point = {self.curve(row): row["value"], "round": row["round"]}
            self._run.log(point, step=step, commit=True)

    def close(self, status: str) -> None:
        """Say how the run ended, and wait until everything is sent."""
        self._run.finish(exit_code=int(status != "done"))


LOGGERS: dict[LoggerName, type[Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MlflowLogger,
    "wandb": WandbLogger,
}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Check that loggers can be used on this machine.

    Raises
    ------
    RequestError
        Says what to install, or who has to log in.
    """
    for name in names:
        LOGGERS[name].check()


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings by dotted key, as text."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)
