"""A Flower app in a folder: its ``pyproject.toml``, and the apps that this names."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict, get_project_config, parse_config_args
from flwr.serverapp import ServerApp

from pudica.models.errors import RequestError, unknown_name_error

Value = bool | float | int | str
COMPONENTS: dict[str, type] = {"serverapp": ServerApp, "clientapp": ClientApp}
# As Flower reads them: KEY=VALUE, the value in quotes if it is text.
PAIR = re.compile(r"""(\S+?)=('[^']*'|"[^"]*"|\S+)""")


@dataclass(frozen=True)
class FlowerProject:
    """A Flower app as its ``pyproject.toml`` describes it.

    Attributes
    ----------
    server, client : str
        Where its apps are, ``MODULE:ATTRIBUTE``.
    config : dict
        The run configuration with dots in the keys of nested sections.
    """

    folder: Path
    server: str
    client: str
    config: dict[str, Value]


def read_project(folder: Path, overrides: Sequence[str] = ()) -> FlowerProject:
    """Return the Flower app in a folder.

    Overrides are as of ``flwr run --run-config``: ``KEY=VALUE`` pairs with spaces between, or a
    TOML file.

    Raises
    ------
    RequestError
        If there is no app in the folder, or an override has another key or type than the app's
        own settings.
    """
    folder = folder.expanduser().absolute()
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise RequestError(f"{folder}: no Flower app, there is no pyproject.toml in it")
    try:
        app = get_project_config(folder)["tool"]["flwr"]["app"]
        config = flatten_dict(app.get("config"))
    except (ValueError, TypeError, OSError) as error:
        raise RequestError(f"{file}: not that of a Flower app: {error}") from error
    server, client = (_read_component(file, app["components"], key) for key in COMPONENTS)
    given = _parse_overrides(overrides)
    return FlowerProject(folder, server, client, config | _match_types(given, config, file))


@contextmanager
def import_apps(project: FlowerProject) -> Iterator[tuple[ServerApp, ClientApp]]:
    """Import a project's apps; within the context its modules come before all others.

    Raises
    ------
    RequestError
        If there is no such module, or what is named in it is no app.
    """
    own, folder = _list_modules(project), str(project.folder)
    # Modules of the same names that were loaded from elsewhere are put aside meanwhile.
    others = _remove_modules(own)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        server = _import_object(project, "serverapp", project.server)
        client = _import_object(project, "clientapp", project.client)
        yield server, client
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
        _remove_modules(own)
        sys.modules.update(others)


def _read_component(file: Path, components: dict[str, Any], key: str) -> str:
    value = components.get(key)
    if not isinstance(value, str) or not re.fullmatch(r"[\w.]+:[\w.]+", value):
        raise RequestError(
            f"{file}: [tool.flwr.app.components] {key}: {value!r}; allowed: MODULE:ATTRIBUTE"
        )
    return value


def _parse_overrides(texts: Sequence[str]) -> dict[str, Value]:
    try:
        if len(texts) != 1 or not texts[0].endswith(".toml"):
            for text in texts:
                if rest := PAIR.sub("", text).strip():
                    raise RequestError(f"--run-config: '{rest}' is no KEY=VALUE")
        return dict(parse_config_args(list(texts)))
    except (ValueError, OSError, click.ClickException) as error:
        if isinstance(error, RequestError):
            raise
        reason = error.message if isinstance(error, click.ClickException) else str(error)
        raise RequestError(f"--run-config: {reason}") from error


def _match_types(
    given: dict[str, Value], declared: dict[str, Value], file: Path
) -> dict[str, Value]:
    matched = {}
    for key, value in given.items():
        if key not in declared:
            raise RequestError(f"--run-config: {unknown_name_error('key', key, declared)}")
        kind = type(declared[key])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise RequestError(
                f"--run-config: {key}: {value!r} is of type {type(value).__name__}; {file} "
                f"declares {declared[key]!r}; allowed: {kind.__name__}"
            )
        matched[key] = value
    return matched


def _list_modules(project: FlowerProject) -> set[str]:
    """Return the top-level names that imports find in the project's folder."""
    files = {path.stem for path in project.folder.glob("*.py")}
    packages = {path.parent.name for path in project.folder.glob("*/__init__.py")}
    named = {re.split("[.:]", reference)[0] for reference in (project.server, project.client)}
    namespaces = {name for name in named if (project.folder / name).is_dir()}
    return (files | packages | namespaces) - sys.stdlib_module_names


def _remove_modules(names: set[str]) -> dict[str, Any]:
    found = [module for module in sys.modules if module.partition(".")[0] in names]
    return {module: sys.modules.pop(module) for module in found}


def _import_object(project: FlowerProject, key: str, reference: str) -> Any:
    module_name, _, path = reference.partition(":")
    where = f"{project.folder / 'pyproject.toml'}: {key} '{reference}'"
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RequestError(f"{where}: {error}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise RequestError(f"{where}: there is no '{attribute}' in {module_name}")
        found = getattr(found, attribute)
    if not isinstance(found, COMPONENTS[key]):
        kind = COMPONENTS[key].__name__
        raise RequestError(f"{where}: a {type(found).__name__}; allowed: a Flower {kind}")
    return found
