"""What a value may be, in words, from its JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pudica.models.settings import KINDS, describe_bounds

Field = Mapping[str, Any]

_BOUNDS = {
    "exclusiveMinimum": "gt",
    "minimum": "ge",
    "exclusiveMaximum": "lt",
    "maximum": "le",
}
_FORMATS = {"path": "path", "date-time": "date and time with time zone"}


def describe_kind(field: Field, many: bool = False) -> str:
    """Return the values that a schema allows, such as ``number above 0``; ``many``: several.

    >>> describe_kind({"type": "array", "items": {"type": "integer", "minimum": 1}})
    'list of whole numbers at least 1'
    """
    if options := _list_options(field):
        kinds = list(dict.fromkeys(describe_kind(option, many) for option in options))
        are_long = any(word in kind for kind in kinds for word in (",", " and ", " to "))
        return (", or " if are_long else " or ").join(kinds)
    if "enum" in field:
        return f"{'any' if many else 'one'} of {_join(field['enum'])}"
    if "const" in field:
        return str(field["const"])
    return _DESCRIBERS.get(field.get("type", ""), _describe_anything)(field, many)


def find_sections(field: Field) -> list[Field]:
    """Return the sections that a schema allows, itself or as items of a list."""
    if "properties" in field:
        return [field]
    inner = [*_list_options(field), *([field["items"]] if "items" in field else [])]
    return [section for option in inner for section in find_sections(option)]


def is_list_of_sections(field: Field) -> bool:
    """Tell whether the sections that a schema allows are items of a list."""
    return bool(find_sections(field.get("items", {}))) or any(
        is_list_of_sections(option) for option in _list_options(field)
    )


def _list_options(field: Field) -> list[Field]:
    return [*field.get("anyOf", ()), *field.get("oneOf", ())]


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _describe_number(field: Field, many: bool) -> str:
    noun = "whole number" if field["type"] == "integer" else "number"
    bounds = describe_bounds({ours: field.get(theirs) for theirs, ours in _BOUNDS.items()})
    return f"{noun}{'s' if many else ''} {bounds}".rstrip()


def _describe_text(field: Field, many: bool) -> str:
    noun = _FORMATS.get(field.get("format", ""), "text")
    return noun.replace(" ", "s ", 1) if many and " " in noun else f"{noun}{'s' if many else ''}"


def _describe_list(field: Field, many: bool) -> str:
    noun, least = "lists" if many else "list", field.get("minItems", 0)
    if "prefixItems" in field:
        return f"{noun} of {least} {describe_kind(field['prefixItems'][0], True)}"
    items = describe_kind(field.get("items", {}), True)
    return f"{noun} of {f'at least {least} ' if least > 1 else ''}{items}"


def _describe_mapping(field: Field, many: bool) -> str:
    if "properties" in field:
        return "sections" if many else "section"
    names = describe_kind(field["propertyNames"], True) if "propertyNames" in field else "names"
    values = field.get("additionalProperties")
    inner = describe_kind(values if isinstance(values, dict) else {}, True)
    return f"{'mappings' if many else 'mapping'} of {names} to {inner}"


def _describe_anything(field: Field, many: bool) -> str:  # noqa: ARG001
    return "values" if many else "value"


_DESCRIBERS = {
    "integer": _describe_number,
    "number": _describe_number,
    "boolean": lambda field, many: KINDS["bool"],  # noqa: ARG005
    "string": _describe_text,
    "null": lambda field, many: "null",  # noqa: ARG005
    "array": _describe_list,
    "object": _describe_mapping,
}
