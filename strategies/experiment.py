"""An experiment: one YAML file, validated before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import models
from clients.data import DataConfig, Splits, load, partition
from clients.protocol import ParticipantConfig
from models.compute import Compute, ComputeConfig
from models.custom import SUFFIX
from models.errors import RequestError, unknown
from models.randomness import derive
from models.training import TrainingConfig
from strategies.explain import explained, keys_of, misplaced_booleans, source_of
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


Settings = TypeVar("Settings", bound=BaseModel)


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

    name: str = Field(
        default="experiment",
        max_length=100,
        pattern=r"^[^./\\][^/\\]*$",
        description="a name that can be a folder's: not empty, no dot in front, no / and \\",
    )
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
        try:
            return load(self.data, derive(self.seed, "data"))
        except RequestError as error:
            raise RequestError(f"data: {error}") from error

    def check(self) -> None:
        """Read the data, divide them and build every model once.

        Raises
        ------
        RequestError
            Something is not there, or does not fit.
        """
        Compute(self.client)
        data = self.load_data()
        self.check_models(data)
        if self.data.partition:
            seed, count = derive(self.seed, "data"), len(self.participants)
            try:
                partition(data.train.labels, count, self.data.partition, seed)
            except RequestError as error:
                raise RequestError(f"data.partition: {error}") from error

    def check_models(self, data: Splits) -> None:
        """Build every model once.

        Raises
        ------
        RequestError
            A model that is unknown, or does not accept the data.
        """
        examiner = self.themis.examiner
        wanted = [
            (f"participants.{number} ({p.name})", p.model)
            for number, p in enumerate(self.participants)
        ]
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

    def with_absolute_paths(self) -> Experiment:
        """Return the experiment with its files named in a way that holds in any directory."""
        places = {key: getattr(self.data, key) for key in ("root", "path")}
        absolute = {key: _absolute(place) for key, place in places.items() if place is not None}
        participants = [
            p.model_copy(update={"model": str(_absolute(Path(p.model)))})
            if p.model.endswith(SUFFIX)
            else p
            for p in self.participants
        ]
        data = self.data.model_copy(update=absolute)
        return self.model_copy(update={"data": data, "participants": participants})

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML."""
        values = json.loads(self.model_dump_json(by_alias=True))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


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
    return validated(Experiment, values, where, overrides).with_absolute_paths()


def validated(
    schema: type[Settings], values: dict[str, Any], where: str, overrides: list[str]
) -> Settings:
    """Return settings as ``schema``, after putting the overrides into their values.

    Parameters
    ----------
    schema : type of BaseModel
    values : dict
        Changed in place.
    where : str
        Where the values are from, for messages.
    overrides : list of str
        As of :func:`load_experiment`.

    Raises
    ------
    RequestError
        Names place, key, value and what is allowed.
    """
    keys = [_override(values, text) for text in overrides]
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(explained(error, schema, where, keys))) from error
    for key in misplaced_booleans(values, settings.model_dump(by_alias=True)):
        source = source_of(key, where, keys)
        raise RequestError(f"{source}: {key}: must be a number, not true or false")
    return settings


def _read(source: str) -> tuple[dict[str, Any], str]:
    if source.lstrip().startswith("{"):
        try:
            return json.loads(source), "experiment"
        except ValueError as error:
            raise RequestError(f"experiment: not valid JSON: {error}") from error
    path = _file(source)
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path.name}: not valid YAML: {_in_one_line(error)}") from error
    except OSError as error:
        raise RequestError(f"can't read the experiment file {source}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise RequestError(
            f"{path.name}: holds no sections; allowed: {', '.join(keys_of(Experiment))}"
        )
    return {"name": path.stem, **values}, path.name


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not source.endswith((".yaml", ".yml")) and "/" not in source:
        if source in shipped():
            return shipped()[source]
        hint = f"; the file here must be called {source}.yaml to be one" if path.is_file() else ""
        raise RequestError(f"{unknown('experiment', source, shipped())}, or a FILE.yaml{hint}")
    if path.is_dir():
        raise RequestError(f"{source} is a directory; name a YAML file in it")
    if not path.is_file():
        raise RequestError(f"there is no experiment file {path.absolute()}")
    return path


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


def _in_one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if not mark or not problem:
        return str(error).replace("\n", " ")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _override(values: dict[str, Any], text: str) -> str:
    """Put an override into the values, and return its key."""
    key, equals, given = text.partition("=")
    if not equals or not key:
        raise RequestError(f"--set {text}: must be key=value, for example seed=3")
    try:
        value = _parsed(given)
    except yaml.YAMLError as error:
        problem = _in_one_line(error)
        raise RequestError(f"--set {text}: the value is not valid YAML: {problem}") from error
    *path, last = key.split(".")
    section: Any = values
    for part in path:
        section = _inside(section, part, text)
    if isinstance(section, list):
        section[_place(section, last, text)] = value
    else:
        section[last] = value
    return key


def _inside(section: Any, part: str, override: str) -> Any:
    """Return what lies under a part of a key: a section or a list."""
    if isinstance(section, list):
        found = section[_place(section, part, override)]
    else:
        found = section.setdefault(part, {})
        if found is None:  # a section that is switched off, or empty
            found = section[part] = {}
    if not isinstance(found, dict | list):
        raise RequestError(f"--set {override}: '{part}' is not a section")
    return found


def _place(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise RequestError(
            f"--set {override}: '{part}' is no place in a list of {len(items)}; "
            f"allowed: 0 to {len(items) - 1}"
        )
    return int(part)
