"""Several settings in one experiment: each case says what differs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pudica.models.naming import describe_case_names, validate_case_name
from pudica.models.printable import quote
from pudica.models.settings import explain_errors

# Of a run's directory, where each case has a folder of its own.
OWN_NAMES = (
    *("plots", "vault", "experiment.yaml", "run.json", "metrics.jsonl", "events.log"),
    *("progress.json", "checkpoint.safetensors", "examiner.safetensors", "releases.json"),
    *("nodes.json", "stages.json", "orders.json", "manifest.json", "submissions.safetensors"),
    *("flower.log", "page"),
)
MAIN = "main"

Settings = TypeVar("Settings", bound=BaseModel)


def each_case(settings: Settings, shared: Set[str]) -> dict[str, Settings]:
    """Return the full settings of each case by name; without cases, of ``main``.

    Parameters
    ----------
    settings : BaseModel
        With a field ``cases``: by name, what differs; keys may have dots, as with ``--set``.
    shared : set of str
        Keys that no case may change.

    Raises
    ------
    ValueError
        If a case's name is no folder's, or that of another too, it changes what is shared, or a
        value is wrong.
    """
    cases: Mapping[str, Mapping[str, Any]] = getattr(settings, "cases", {})
    if not cases:
        return {MAIN: settings}
    own = settings.model_dump(by_alias=True, exclude={"cases"})
    found: dict[str, Settings] = {}
    for text, changes in cases.items():
        name = _name(text)
        if name in found:
            raise ValueError(f"case {quote(text)} is there twice, in two spellings (NFC and NFD)")
        found[name] = _case(type(settings), name, own, changes, shared)
    return found


def _name(text: str) -> str:
    try:
        name = validate_case_name(text)
    except ValueError:
        name = ""
    if not name or name in OWN_NAMES:
        raise ValueError(
            f"case {quote(text)}: a case's name is that of a folder: {describe_case_names()}, "
            f"the first a letter, a digit or _, and none of {', '.join(OWN_NAMES)}"
        )
    return name


def _case(
    schema: type[Settings],
    name: str,
    own: Mapping[str, Any],
    changes: Mapping[str, Any],
    shared: Set[str],
) -> Settings:
    if fixed := {"cases", *shared} & {key.partition(".")[0] for key in changes}:
        raise ValueError(f"case '{name}': {', '.join(sorted(fixed))} is shared by all cases")
    values: Any = own
    for key, value in changes.items():
        values = _changed(values, key.split("."), value)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"case '{name}': {'; '.join(explain_errors(error, schema))}") from error


def _changed(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    """Return a mapping with the value at a path, the rest as it was."""
    section = values if isinstance(values, Mapping) else {}
    first, *rest = path
    return {**section, first: _changed(section.get(first), rest, value) if rest else value}
