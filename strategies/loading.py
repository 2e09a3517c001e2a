"""Reading an experiment: one YAML file and overrides, validated before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pudica.clients.runtime.systems import systems
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.printable import to_nfc
from pudica.models.settings import (
    explain_errors,
    find_misplaced_booleans,
    find_source,
    list_yaml_keys,
)
from pudica.strategies.core.experiment import Experiment

# The shipped experiments are data of the package `simulations`; no code of it is used here.
SHIPPED = Path(__file__).parent.parent / "simulations" / "experiments"
Settings = TypeVar("Settings", bound=BaseModel)


def shipped() -> dict[str, Path]:
    """Return the files of experiments that come with a system, by name."""
    others = [system.part("experiments") for system in systems().values()]
    folders = [SHIPPED, *(Path(str(folder)) for folder in others if folder)]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


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
    keys = [_override(values, text) for text in overrides]
    schema = _system(values, find_source("system", where, keys))
    return _validated(schema, values, where, keys)


def find_schema(system: str) -> type[Experiment]:
    """Return the schema of a system's experiments; RequestError if there is no such system."""
    if system not in systems():
        raise unknown_name_error("system", system, systems())
    schema: type[Experiment] = systems()[system].part("experiment")
    return schema


def _system(values: dict[str, Any], where: str) -> type[Experiment]:
    """Return the schema of the system that an experiment is of; THEMIS if it does not say."""
    try:
        return find_schema(str(values.get("system", "themis")))
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


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
    return _validated(schema, values, where, [_override(values, text) for text in overrides])


def _validated(
    schema: type[Settings], values: dict[str, Any], where: str, keys: list[str]
) -> Settings:
    """Return values as ``schema``; ``keys`` are those that were overridden."""
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, schema, where, keys))) from error
    for key in find_misplaced_booleans(values, settings.model_dump(by_alias=True)):
        source = find_source(key, where, keys)
        raise RequestError(f"{source}: {key}: must be a number, not true or false")
    return settings


def _read(source: str) -> tuple[dict[str, Any], str]:
    if source.lstrip().startswith("{"):
        try:
            return json.loads(source), "experiment"
        except ValueError as error:
            raise RequestError(f"experiment: not valid JSON: {error}") from error
    path = _file(source)
    values = _values(path)
    if not isinstance(values, dict):
        raise RequestError(
            f"{path.name}: holds no sections; allowed: "
            f"{', '.join(list_yaml_keys(_system({}, path.name)))}"
        )
    return {"name": path.stem, **values}, path.name


def read_settings(schema: type[Settings], path: Path) -> Settings:
    """Return the settings of a YAML file.

    Raises
    ------
    RequestError
        Names file, key, value and what is allowed.
    """
    return _validated(schema, _values(path), path.name, [])


def _values(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path.name}: not valid YAML: {_in_one_line(error)}") from error
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}") from error


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not source.endswith((".yaml", ".yml")) and "/" not in source:
        if source in shipped():
            return shipped()[source]
        hint = f"; the file here must be called {source}.yaml to be one" if path.is_file() else ""
        raise RequestError(
            f"{unknown_name_error('experiment', source, shipped())}, or a FILE.yaml{hint}"
        )
    if path.is_dir():
        raise RequestError(f"{source} is a directory; name a YAML file in it")
    if not path.is_file():
        raise RequestError(f"there is no experiment file {path.absolute()}")
    return path


def _plain(tag: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return the pattern of a kind of number, without a colon in it; other patterns as they are."""
    number = tag.endswith((":int", ":float"))
    return re.compile(f"(?!.*:){pattern.pattern}", pattern.flags) if number else pattern


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last; in NFD it is too."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            name = to_nfc(key.value) if isinstance(key.value, str) else key.value
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
            seen.append(name)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 9:1 as a number to base 60, and 4:1:1 too.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _plain(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


def _in_one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if not mark or not problem:
        return str(error).replace("\n", " ")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``, the value as YAML reads it.

    Raises
    ------
    RequestError
        If it is something else, or the value is not valid YAML.
    """
    key, equals, given = text.partition("=")
    if not equals or not key:
        raise RequestError(f"--set {text}: must be key=value, for example seed=3")
    try:
        return key, _parsed(given)
    except yaml.YAMLError as error:
        problem = _in_one_line(error)
        raise RequestError(f"--set {text}: the value is not valid YAML: {problem}") from error


def _override(values: dict[str, Any], text: str) -> str:
    """Put an override into the values, and return its key."""
    key, value = parse_override(text)
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
