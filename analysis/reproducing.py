"""The command that runs an experiment again, from a run's settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from pudica.analysis.runs import Run
from pudica.models.errors import RequestError
from pudica.models.printable import escape_hidden
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.loading import load_experiment, shipped

FILE = "experiment.yaml"


def build_command(run: Run) -> str | None:
    """Return ``pudica run NAME`` with all settings that differ from the shipped experiment.

    Returns
    -------
    str or None
        None if it can't be told exactly: the experiment was not shipped with the installed
        version, or its settings can't be given on a command line.
    """
    name = run.info.get("experiment", "")
    if name not in shipped() or not is_simulation(run):
        return None
    try:
        own = load_experiment(json.dumps(run.settings, default=str), [])
        changes = list(_list_changes(_to_values(own), _to_values(load_experiment(name, []))))
        is_exact = load_experiment(name, changes) == own
    except RequestError:
        return None
    command = join_command(run, name, changes)
    return command if is_exact and escape_hidden(command) == command else None


def is_simulation(run: Run) -> bool:
    """Return whether ``pudica run`` ran it: not real nodes, nor somebody's own app."""
    return run.info.get("engine") in ("inprocess", "ray", "flower") and "data" in run.settings


def join_command(run: Run, source: str, changes: list[str]) -> str:
    """Return the command that runs an experiment on a run's engine, as a shell reads it."""
    engine = run.info.get("engine")
    options = [word for change in changes for word in ("--set", change)]
    options += ["--engine", str(engine)] if engine else []
    return shlex.join(["pudica", "run", source, *options])


def to_yaml(run: Run) -> str:
    """Return the resolved settings of a run."""
    return yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)


def _to_values(experiment: Experiment) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(experiment.to_yaml())
    return values


def _list_changes(values: Any, others: Any, key: str = "") -> Iterator[str]:
    """Yield ``key=value`` for each value that differs, with sections only where they must be."""
    if values == others:
        return
    inside = _pair_items(values, others)
    if inside is None:
        yield f"{key}={_format_value(values)}"
        return
    for name, (value, other) in inside.items():
        yield from _list_changes(value, other, f"{key}.{name}" if key else name)


def _pair_items(values: Any, others: Any) -> dict[str, tuple[Any, Any]] | None:
    """Return the items of two sections, or lists of sections, by name; None if they don't match."""
    if isinstance(values, list) and isinstance(others, list):
        if not all(isinstance(item, dict) for item in (*values, *others)):
            return None
        values, others = (dict(enumerate(items)) for items in (values, others))
    if not (isinstance(values, dict) and isinstance(others, dict)):
        return None
    if values.keys() != others.keys() or any("." in str(name) for name in values):
        return None
    return {str(name): (value, others[name]) for name, value in values.items()}


def _format_value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
