"""Every setting of a system: its key for ``--set``, type, default, unit and meaning.

All of it is read from the JSON Schema of the system's experiments.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from pydantic import BaseModel

from pudica.models.errors import RequestError, unknown_name_error
from pudica.simulations.settings_kinds import describe_kind, find_sections, is_list_of_sections
from pudica.simulations.settings_schema import UNIT, build_json_schema


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes
    ----------
    key : str
        As ``--set`` takes it; 0 stands for any place in a list.
    kind : str
        Its type in words.
    default : str or None
        As YAML; empty where it is computed. None: it is required.
    unit, meaning : str
        The unit is empty where there is none.
    """

    key: str
    kind: str
    default: str | None
    unit: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A section: itself a setting, with settings of its own.

    Attributes
    ----------
    head : Setting
        The section itself; its key is empty for the whole experiment.
    variant : str
        Which of several sections it is that can stand here, for example ``name: mixing``.
    settings : tuple of Setting
        Its settings but for sections in it, which follow.
    """

    head: Setting
    variant: str
    settings: tuple[Setting, ...]


def describe_settings(experiment: type[BaseModel]) -> list[Section]:
    """Return all settings of a system's experiments by section, the whole experiment first."""
    schema = build_json_schema(experiment)
    whole = _resolve(schema, schema.get("$defs", {}))
    head = Setting("", "section", "{}", "", whole["description"])
    return list(_read_section(head, "", "", whole))


def describe_values(setting: Setting) -> str:
    """Return a setting's type, unit and default in a line; of an ordinary section, nothing."""
    if (setting.kind, setting.default) == ("section", "{}"):
        return ""
    unit = f"in {setting.unit}" if setting.unit else ""
    default = f"default: {setting.default}" if setting.default else ""
    default = "required" if setting.default is None else default
    return "; ".join(filter(None, (setting.kind, unit, default)))


def name_section(section: Section) -> str:
    """Return a section's key, and which of several sections it is."""
    return f"{section.head.key} ({section.variant})" if section.variant else section.head.key


def select_settings(sections: Sequence[Section], prefix: str) -> list[Section]:
    """Return the settings with a key, or below it; a number stands for any place in a list.

    Raises
    ------
    RequestError
        There is none; names those that are near.
    """
    key = re.sub(r"(?<=\.)\d+(?=\.|$)", "0", prefix)
    kept = [
        section if _is_below(section.head.key, key) else _keep_below(section, key)
        for section in sections
    ]
    found = [each for each in kept if each.settings or _is_below(each.head.key, key)]
    if not found:
        keys = {each.key for section in sections for each in (section.head, *section.settings)}
        raise _unknown_key_error(key, keys - {""})
    return found


def _is_below(key: str, prefix: str) -> bool:
    return f"{key}.".startswith(f"{prefix}.")


def _keep_below(section: Section, prefix: str) -> Section:
    kept = tuple(setting for setting in section.settings if _is_below(setting.key, prefix))
    return replace(section, settings=kept)


def _unknown_key_error(key: str, keys: Collection[str]) -> RequestError:
    """Return the error for a key: settings of that name elsewhere, or those beside it."""
    if elsewhere := sorted(known for known in keys if known.endswith(f".{key}")):
        names = " or ".join(f"'{known}'" for known in elsewhere)
        return RequestError(f"unknown setting '{key}'. Did you mean {names}?")
    parts = key.split(".")
    places = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    unknown = next(place for place in places if not any(_is_below(k, place) for k in keys))
    parent, _, _ = unknown.rpartition(".")
    depth = unknown.count(".") + 1
    beside = {
        ".".join(known.split(".")[:depth])
        for known in keys
        if known != parent and (not parent or _is_below(known, parent))
    }
    return unknown_name_error("setting", unknown, beside or {parent})


def _resolve(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema in which every reference is replaced by what it refers to."""
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    target = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
    merged = {**target, **node}
    kept = {key: value for key, value in merged.items() if key not in ("$ref", "$defs")}
    return {key: _resolve(value, definitions) for key, value in kept.items()}


def _read_section(
    head: Setting, variant: str, place: str, schema: Mapping[str, Any]
) -> Iterator[Section]:
    """Yield a section whose settings are below a place, then the sections in it."""
    plain: list[Setting] = []
    inner: list[tuple[Setting, Mapping[str, Any]]] = []
    for key, field in schema["properties"].items():
        if not field.get("deprecated"):
            setting = _read_setting(f"{place}{key}", field, key in schema.get("required", ()))
            if find_sections(field):
                inner.append((setting, field))
            else:
                plain.append(setting)
    yield Section(head, variant, tuple(plain))
    for setting, field in inner:
        yield from _read_inner(setting, field)


def _read_inner(head: Setting, field: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section of a field, or all those of which it can be one."""
    place = f"{head.key}.0." if is_list_of_sections(field) else f"{head.key}."
    options = find_sections(field)
    if len(options) == 1:
        yield from _read_section(head, "", place, options[0])
        return
    tag = _find_tag(options)
    yield Section(head, "", (_read_choice(f"{place}{tag}", tag, options),) if tag else ())
    for number, option in enumerate(options, 1):
        fields = option["properties"]
        variant = f"{tag}: {fields[tag]['const']}" if tag else f"{number} of {len(options)}"
        rest = {key: field for key, field in fields.items() if key != tag}
        own = Setting(head.key, "section", "{}", "", option["description"])
        yield from _read_section(own, variant, place, {**option, "properties": rest})


def _find_tag(options: Sequence[Mapping[str, Any]]) -> str:
    """Return the key that tells which of several sections it is; empty if there is none."""
    shared = (
        key
        for key in options[0]["properties"]
        if all("const" in option["properties"].get(key, ()) for option in options)
    )
    return next(shared, "")


def _read_choice(key: str, tag: str, options: Sequence[Mapping[str, Any]]) -> Setting:
    fields = [option["properties"][tag] for option in options]
    choice = {"description": fields[0]["description"], "enum": [each["const"] for each in fields]}
    return _read_setting(key, choice, is_required=True)


def _read_setting(key: str, field: Mapping[str, Any], is_required: bool) -> Setting:
    default = None if is_required else ""
    if not is_required and "default" in field:
        default = _to_yaml(_shorten_default(field["default"], field))
    meaning, unit = field.get("description", ""), field.get(UNIT, "")
    return Setting(key, describe_kind(field), default, unit, meaning)


def _shorten_default(default: Any, field: Mapping[str, Any]) -> Any:
    """Return a default; of a section, what differs from the defaults of its settings."""
    if not isinstance(default, dict):
        return default
    for section in find_sections(field):
        known = section["properties"]
        if all(known.get(key, {}).get("const", value) == value for key, value in default.items()):
            return {
                key: _shorten_default(value, known[key])
                for key, value in default.items()
                if key in section.get("required", ()) or value != known[key].get("default")
            }
    return default


def _to_yaml(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000
    )
    return text.removesuffix("...\n").strip()
