"""The JSON Schema of a system's experiments, with each setting's meaning and unit.

Both stand in the docstrings of the sections' classes, under "Attributes"; the unit is the end of
the type, as in ``timeout : float or None, in seconds``.
"""

from __future__ import annotations

import re
from copy import deepcopy
from inspect import cleandoc
from typing import Any, NamedTuple

from docstring_parser import Docstring, DocstringStyle, parse
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pudica.models.settings import list_yaml_keys
from pudica.strategies.core.cases import CasesConfig

UNIT = "x-unit"
"""The schema's keyword for a setting's unit."""
_ROLE = re.compile(r":[\w:]+:`[~.]*([^`]+)`")


class Meaning(NamedTuple):
    """What a setting means, and its unit, which is empty where it has none."""

    text: str
    unit: str


def build_json_schema(experiment: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a system's experiments, which editors can check files by."""
    schema = experiment.model_json_schema(by_alias=True, schema_generator=_DescribedSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def read_meanings(section: type[BaseModel]) -> dict[str, Meaning]:
    """Return the meanings of a section's settings by field, also of those it inherits."""
    own = [
        base for base in section.__mro__ if issubclass(base, BaseModel) and base is not BaseModel
    ]
    return {
        name.strip(): _read_meaning(entry.description or "", entry.type_name or "")
        for base in reversed(own)
        for entry in _parse_docstring(base).params
        for name in entry.arg_name.split(",")
    }


def _parse_docstring(section: type[BaseModel]) -> Docstring:
    return parse(cleandoc(section.__dict__.get("__doc__") or ""), DocstringStyle.NUMPYDOC)


def _read_meaning(text: str, kind: str) -> Meaning:
    _, _, unit = kind.partition(", in ")
    return Meaning(_to_plain_text(text), unit)


def _to_plain_text(text: str) -> str:
    """Return a docstring's text in one line, without Sphinx's roles, with YAML's word for None."""
    plain = _ROLE.sub(r"\1", " ".join(text.split())).replace("``", "`")
    return re.sub(r"\bNone\b", "null", plain)


class _DescribedSchema(GenerateJsonSchema):
    """Describes sections by the first line of their docstrings, and settings by their meanings."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return False: a title would repeat the key."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of one section."""
        section, described = schema["cls"], super().model_schema(schema)
        del described["title"]
        described["description"] = _to_plain_text(_parse_docstring(section).short_description or "")
        properties = described.setdefault("properties", {})
        _describe_fields(properties, section)
        if issubclass(section, CasesConfig):
            _describe_cases(properties, section.shared_by_cases)
        if section.model_config.get("populate_by_name"):
            _accept_field_names(properties, section)
        return described


def _describe_fields(properties: dict[str, Any], section: type[BaseModel]) -> None:
    meanings = read_meanings(section)
    for name, key in zip(section.model_fields, list_yaml_keys(section), strict=True):
        if name in meanings and key in properties:
            text, unit = meanings[name]
            # What a field itself describes is what it allows, as error messages say it.
            allowed = properties[key].get("description")
            properties[key]["description"] = f"{text} Allowed: {allowed}." if allowed else text
            if unit:
                properties[key][UNIT] = unit


def _describe_cases(properties: dict[str, Any], shared: frozenset[str]) -> None:
    """Describe what a case may change: keys of its section, also with dots."""
    own = {key: value for key, value in properties.items() if key not in {"cases", *shared}}
    case = {
        "type": "object",
        "properties": deepcopy(own),
        "patternProperties": {rf"^({'|'.join(map(re.escape, own))})\.": {}},
        "additionalProperties": False,
    }
    properties["cases"] = {**properties.pop("cases"), "additionalProperties": case}  # the last


def _accept_field_names(properties: dict[str, Any], section: type[BaseModel]) -> None:
    """Add the fields' own names, which are accepted beside the keys."""
    for name, key in zip(section.model_fields, list_yaml_keys(section), strict=True):
        if name != key:
            properties[name] = {**properties[key], "deprecated": True}
