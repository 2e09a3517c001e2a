"""Validate settings; explain to whoever wrote them what is wrong, where, and what is allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pudica.models.errors import RequestError, unknown_name_error

Settings = TypeVar("Settings", bound=BaseModel)
Location = tuple[int | str, ...]

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (in quotes, if it looks like a number)",
    "list": "a list",
    "tuple": "a list",
    "path": "a path",
    "finite": "a finite number",
}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def validate_settings(
    schema: type[Settings], values: Mapping[str, Any], owner: str, excluded: Collection[str] = ()
) -> Settings:
    """Return keyword arguments of ``owner`` as settings; only an experiment has the excluded ones.

    Raises RequestError, which names argument, value and what is allowed.
    """
    allowed = [name for name in schema.model_fields if name not in excluded]
    for name in values:
        if name not in allowed:
            raise RequestError(f"{owner}: {unknown_name_error('argument', name, allowed)}")
    for name in allowed:
        if schema.model_fields[name].is_required() and name not in values:
            raise RequestError(f"{owner}: the argument '{name}' is missing")
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise RequestError("\n".join(explain_errors(error, schema, owner))) from error


def explain_errors(
    error: ValidationError, schema: type[BaseModel], file: str = "", overrides: Iterable[str] = ()
) -> list[str]:
    """Return one line per mistake, with the file that the values come from.

    ``overrides`` are dotted keys that were given by ``--set`` instead.
    """
    mistakes = _group_by_key(error, schema)
    return [
        ": ".join(filter(None, [find_source(key, file, overrides), _join_mistakes(mistakes[key])]))
        for key in mistakes
    ]


def find_source(key: str, file: str, overrides: Iterable[str]) -> str:
    """Return ``--set`` if a key's value, or a part of it, was given there; otherwise the file."""
    given = any(f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in overrides)
    return "--set" if given and key else file


def _group_by_key(
    error: ValidationError, schema: type[BaseModel]
) -> dict[str, list[tuple[str, str]]]:
    """Return what is wrong with each key, as (subject, problem)."""
    mistakes: dict[str, list[tuple[str, str]]] = {}
    unknown_in = {item["loc"][:-1] for item in error.errors() if item["type"] == "extra_forbidden"}
    # What pydantic adds to a location to name the type of a union that it tried.
    branches = ("literal[", "list[", "function-")
    for item in error.errors():
        if item["type"] == "missing" and item["loc"][:-1] in unknown_in:
            continue  # misspelt: the unknown key's line says so
        location = tuple(
            part for part in item["loc"] if isinstance(part, int) or not part.startswith(branches)
        )
        key = ".".join(map(str, location))
        mistakes.setdefault(key, []).append(_describe_mistake(item, location, schema))
    return mistakes


def _join_mistakes(mistakes: list[tuple[str, str]]) -> str:
    subject = mistakes[0][0]
    first, *further = dict.fromkeys(problem for _, problem in mistakes)
    text = " or ".join([first, *(problem.removeprefix("must be ") for problem in further)])
    return f"{subject}: {text}" if subject else text


def _describe_mistake(item: Any, location: Location, schema: type[BaseModel]) -> tuple[str, str]:
    kind, key = item["type"], ".".join(map(str, location))
    owner = ".".join(map(str, location[:-1]))
    if kind == "extra_forbidden":
        section, _ = _find_place(schema, location[:-1])
        known = list_yaml_keys(section) if section else []
        problem = str(unknown_name_error("key", str(location[-1]), known))
        return owner, problem + _describe_nested(str(location[-1]), location[:-1], section)
    if kind == "missing":
        return owner, f"the key '{location[-1]}' is missing"
    if kind == "value_error":
        return key, item["msg"].removeprefix("Value error, ")
    return f"{key} = {_format_value(item['input'])}", _describe_problem(item, location, schema)


def _format_value(value: Any) -> str:
    if value is None:
        return "(empty)"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _describe_problem(item: Any, location: Location, schema: type[BaseModel]) -> str:
    kind, (section, field) = item["type"], _find_place(schema, location)
    if kind == "literal_error":
        return f"must be {item['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        meaning = field.description if field else None
        return f"must be {meaning}" if meaning else "has characters that are not allowed"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        allowed = f" with keys of: {', '.join(list_yaml_keys(section))}" if section else ""
        return f"must be a section{allowed}"
    # The whole range of a field, for example "above 0 and at most 10".
    bounds = [
        describe_bounds({name: getattr(limit, name, None) for name in BOUNDS})
        for limit in (field.metadata if field else [])
    ]
    limits = " and ".join(filter(None, bounds)) or describe_bounds(item.get("ctx", {}))
    word = KINDS.get(kind.split("_")[0])
    if word is None and not limits:
        return str(item["msg"])
    return "must be " + ", ".join(filter(None, [word, limits]))


def describe_bounds(values: Mapping[str, Any]) -> str:
    """Return bounds by pydantic's names, such as ``{"gt": 0}``, in words: ``above 0``."""
    return " and ".join(f"{BOUNDS[k]} {values[k]:g}" for k in BOUNDS if values.get(k) is not None)


def list_yaml_keys(section: type[BaseModel]) -> list[str]:
    """Return the keys of a section as they are written in YAML."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _describe_nested(key: str, place: Location, section: type[BaseModel] | None) -> str:
    """Name the subsections that have a key which their section lacks."""
    found = [
        ".".join(map(str, (*place, name, key)))
        for name in (list_yaml_keys(section) if section else [])
        for inner, _ in [_find_place(section, (name,))]  # type: ignore[arg-type]
        if inner and key in list_yaml_keys(inner)
    ]
    verb = "is" if len(found) == 1 else "are"
    return f". There {verb} {' and '.join(found)}" if found else ""


def _find_place(
    schema: type[BaseModel], location: Location
) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """Return the schema of the section at a location, and the field there, where there is one."""
    section: type[BaseModel] | None = schema
    field = None
    for part in location:
        field = None  # an item of a list, or of a mapping with free keys, is not a field
        if isinstance(part, str):
            fields = section.model_fields if section else {}
            field = next((f for name, f in fields.items() if part in (name, f.alias)), None)
            section = _find_model(field.annotation) if field else None
    return section, field


def _find_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_find_model(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in models if model is not None), None)


def find_misplaced_booleans(given: Any, accepted: Any, key: str = "") -> Iterable[str]:
    """Yield the keys where true or false was given for a number: pydantic takes them as 1 and 0.

    ``given`` and ``accepted`` are the values before and after validation.
    """
    if isinstance(given, bool) and not isinstance(accepted, bool):
        yield key
    elif isinstance(given, dict) and isinstance(accepted, dict):
        for name in given.keys() & accepted.keys():
            place = f"{key}.{name}" if key else str(name)
            yield from find_misplaced_booleans(given[name], accepted[name], place)
    elif isinstance(given, list) and isinstance(accepted, list):
        for number, (one, other) in enumerate(zip(given, accepted, strict=False)):
            yield from find_misplaced_booleans(one, other, f"{key}.{number}")
