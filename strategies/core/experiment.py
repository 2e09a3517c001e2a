"""What every experiment says, whatever system it runs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import partial
from typing import Annotated, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from pudica.clients.data import DataConfig, PartitionConfig, Splits, load, load_once, partition_once
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.files import AbsolutePath
from pudica.models.naming import validate_name, validate_text
from pudica.models.randomness import derive
from pudica.strategies.core.loggers import LoggerName, check_loggers

LONGEST_NAME = 100


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Log = Annotated[
    tuple[LoggerName, ...],
    BeforeValidator(_as_list),
    AfterValidator(lambda names: tuple(dict.fromkeys(names))),
]
"""Names of loggers: one, or a list of different ones."""


class ClientConfig(ComputeConfig):
    """What each simulated client may use, and how long it may take.

    Attributes
    ----------
    num_cpus : float, in CPUs
        Ray's share of the CPUs for each worker.
    num_gpus : float, in GPUs
        Ray's share of the GPUs for each worker; with a fraction several share one.
    timeout : float or None, in seconds
        Seconds after which a node that has not answered counts as dropped out. None: never.
    patience : float or None, in seconds
        Seconds for which a node may be away; meanwhile, and while it is silent, it is asked again.
        None, as in simulations: nobody is asked twice.
    """

    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    timeout: float | None = Field(default=None, gt=0)
    patience: float | None = Field(default=None, gt=0)


class RayConfig(BaseModel):
    """Where Ray runs: a cluster's address, or (None) a local instance of our own.

    Attributes
    ----------
    address : str or None
        The cluster's address, ``HOST:PORT``. None: a local instance, for this run only.
    token : Path or None
        A file with the cluster's token; None: what Ray's own variables say, ``RAY_AUTH_MODE``
        above all. A local instance has a token of its own.
    workers : int or None, in processes
        Worker processes; None: as many as the shares in ``client`` allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    token: AbsolutePath | None = None
    workers: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        if self.token is not None and self.address is None:
            raise ValueError("token: opens a cluster, and address names none")
        return self


class Experiment(BaseModel, ABC):
    """A whole experiment, each section as its owner defines it.

    A system's own sections are in a subclass.

    Attributes
    ----------
    name : str
        The experiment's name, with which the names of its runs' directories begin; by default the
        file's.
    system : str
        Which system it is for; a file that does not say is for ``themis``.
    description : str
        What it is about, in a line for ``pudica list``.
    seed : int
        What all randomness is derived from, but for what is set to be secret.
    log : tuple of {"tensorboard", "mlflow", "wandb"}
        Who is given the measurements, as the run goes; nodes hear nothing of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(partial(validate_name, longest=LONGEST_NAME))] = Field(
        default="experiment",
        pattern=r"^[^./\\][^/\\]*$",
        description="a name that can be a folder's: not empty, no dot in front, no / and \\",
    )
    system: str
    description: Annotated[str, AfterValidator(validate_text)] = ""
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    client: ClientConfig = ClientConfig()
    ray: RayConfig = RayConfig()
    log: Log = ()

    @abstractmethod
    def deployed(self, nodes: list[str]) -> list[str]:
        """Return what is set otherwise where these nodes are real, as ``key=value``.

        An exchange takes seconds there, however small, and nobody may guess what is secret.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Return the nodes' names, that of partition 0 first."""

    def partition(self) -> PartitionConfig | None:
        """Return how training data are divided among the nodes; None: each has all of them."""
        return self.data.partition

    @abstractmethod
    def check_models(self, data: Splits) -> None:
        """Build everything once that the settings ask for.

        Raises
        ------
        RequestError
            A model that is unknown, or does not accept the data.
        """

    def load_data(self) -> Splits:
        """Return the data, as one who holds all of them sees them."""
        try:
            return load(self.data, derive(self.seed, "data"))
        except RequestError as error:
            raise RequestError(f"data: {error}") from error

    def load_shared(self) -> Splits:
        """Return the data as the nodes of this process see them: read once for all of them."""
        return load_once(self.data.model_dump_json(), derive(self.seed, "data"))

    def remarks(self, data: Splits) -> list[str]:  # noqa: ARG002
        """Return what an organiser of real participants should know of the data, if anything."""
        return []

    def check(self) -> Splits:
        """Read the data, divide them and build every model once; return the data.

        Raises
        ------
        RequestError
            Something is not there, or does not fit.
        """
        check_loggers(self.log)
        Compute(self.client)
        data = self.load_data()
        self.check_models(data)
        if scheme := self.partition():
            seed, count = derive(self.seed, "data"), len(self.names())
            try:
                partition_once(data.train.labels, count, scheme, seed)
            except RequestError as error:
                raise RequestError(f"data.partition: {error}") from error
        return data

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
