"""An experiment: one YAML file, validated before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import models
from clients.data import DataConfig, Splits, load
from clients.protocol import ParticipantConfig
from models.compute import ComputeConfig
from models.errors import RequestError, unknown
from models.randomness import derive
from models.training import TrainingConfig
from strategies.themis.config import ThemisConfig

# The shipped experiments are data of the package `simulations`; no code of it is used here.
SHIPPED = Path(__file__).parent.parent / "simulations" / "experiments"


class ClientConfig(ComputeConfig):
    """What each simulated client may use, and how long it may take.

    Attributes
    ----------
    num_cpus, num_gpus : float
        Ray's share per worker; fractions let several share a GPU.
    timeout : float or None
        Seconds after which a node that has not answered counts as dropped out.
    """

    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    timeout: float | None = Field(default=None, gt=0)


class RayConfig(BaseModel):
    """Where Ray runs: a cluster's address, or (None) a local instance of our own.

    Attributes
    ----------
    workers : int or None
        Worker processes; None: as many as the shares in ``client`` allow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    workers: int | None = Field(default=None, ge=1)


class Experiment(BaseModel):
    """A whole experiment, each section as its owner defines it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "experiment"
    system: Literal["themis"] = "themis"
    description: str = ""
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    participants: list[ParticipantConfig] = Field(min_length=1)
    training: TrainingConfig = TrainingConfig()
    client: ClientConfig = ClientConfig()
    ray: RayConfig = RayConfig()
    themis: ThemisConfig = ThemisConfig()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Experiment:
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"participants: the name '{twice[0]}' is there twice; give each its own `name`"
            )
        self.themis.check(names)
        return self

    def names(self) -> list[str]:
        """Return the participants' names, in order."""
        return [participant.name for participant in self.participants]

    def load_data(self) -> Splits:
        """Return the competition's data, as the organiser sees it."""
        return load(self.data, derive(self.seed, "data"))

    def check_models(self, data: Splits) -> None:
        """Build every model once.

        Raises
        ------
        RequestError
            A model that is unknown, or does not accept the data.
        """
        examiner = self.themis.examiner
        wanted = [(f"participants.{p.name}", p.model) for p in self.participants]
        wanted += [("themis.examiner", examiner.model)] if examiner else []
        for where, model in wanted:
            try:
                models.build(
                    model,
                    num_classes=data.num_classes,
                    channels=data.shape[0],
                    image_size=data.shape[1],
                )
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from error

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def shipped() -> dict[str, Path]:
    """Return the shipped experiments' files by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def load_experiment(source: str, overrides: list[str]) -> Experiment:
    """Return the validated experiment.

    Parameters
    ----------
    source : str
        A shipped experiment's name, a YAML file, or a whole experiment as JSON.
    overrides : list of str
        ``key=value`` with dots in the key; the value is YAML.

    Raises
    ------
    RequestError
        Names file, key, value and what is allowed.
    """
    values, where = _read(source)
    for override in overrides:
        _override(values, override)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(_explained(where, error))) from error


def _read(source: str) -> tuple[dict[str, Any], str]:
    if source.lstrip().startswith("{"):
        return json.loads(source), "experiment"
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = Path(source)
        if not path.is_file():
            raise RequestError(f"no experiment file {source}")
    elif source in shipped():
        path = shipped()[source]
    else:
        raise unknown("experiment", source, shipped())
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path.name}: must be a mapping of sections, see `pudica list`")
    return {"name": path.stem, **values}, path.name


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"--set {override}: must be key=value, for example seed=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"--set {override}: the value is not valid YAML: {error}") from error
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise RequestError(f"--set {override}: '{part}' is not a section")
    section[last] = value


def _explained(where: str, error: ValidationError) -> list[str]:
    """Return a line per mistake: file, key, value, and what is allowed."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: {unknown('key', str(item['loc'][-1]), _allowed(item['loc']))}")
            lines[-1] += f" (in {key})" if "." in key else ""
        elif item["type"] == "value_error":
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {key + ': ' if key else ''}{message}")
        else:
            lines.append(f"{where}: {key} = {item['input']!r}: {item['msg']}")
    return lines


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section in which an unknown key stands."""
    section: Any = Experiment
    for part in location[:-1]:
        if isinstance(part, int) or part == "function-after":
            continue
        annotation = section.model_fields[part].annotation
        section = _model_in(annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
