"""``pudica settings``: every setting of every system, in words and as a JSON Schema."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import Result
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from pudica.clients.data import PartitionConfig
from pudica.clients.runtime.systems import systems
from pudica.clients.shields import SHIELDS
from pudica.models.errors import RequestError
from pudica.simulations.settings import Section, Setting, describe_settings
from pudica.simulations.settings_kinds import describe_kind
from pudica.simulations.settings_schema import build_json_schema, read_meanings
from pudica.strategies.loading import find_schema, load_experiment, shipped, validated

SYSTEMS = sorted(systems())
REQUIRED = {"epsilon": 1, "name": "none"}
"""Values of settings that have no default, by the end of their key."""
NEEDED = {
    "dlmt.dp": ["dlmt.train=federated"],
    "split.budget": ["split.front=frozen"],
    "split.pretraining": ["split.pretraining.data={}"],
    "facemix.anonymiser": ["facemix.place=cloud"],
}
"""What else must be set where a section is given."""
REFUSED = {
    "dlmt": {
        f"data.partition.{name}": "in this system set dlmt.partition"
        for name in PartitionConfig.model_fields
    },
    "facemix": {
        **dict.fromkeys(("data", "data.attributes"), "there are none"),
        "facemix.shield.weight": "it is for split learning",
    },
    "split": dict.fromkeys(
        ("split.shield.group", "split.shield.shuffle", "split.shield.pad"), "it is for facemix"
    ),
}
"""What systems share and one of them refuses, and what it says."""


@cache
def describe(system: str) -> list[Section]:
    return describe_settings(find_schema(system))


def list_rows(system: str) -> Iterator[tuple[Section, Setting]]:
    """Yield all settings, sections among them, each with the section that it is in, or is."""
    for section in describe(system):
        if section.head.key and not section.variant:
            yield section, section.head
        yield from ((section, setting) for setting in section.settings)


def list_keys(system: str) -> set[str]:
    return {setting.key for _, setting in list_rows(system)}


def read_values(name: str) -> dict[str, Any]:
    return yaml.safe_load(shipped()[name].read_text(encoding="utf-8"))


def find_quick_experiment(system: str) -> str:
    names = [name for name in shipped() if read_values(name).get("system", "themis") == system]
    return min(names, key=lambda name: "digits" not in name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_setting_lacks_a_meaning_a_type_or_a_default(system: str) -> None:
    for section, setting in list_rows(system):
        place = f"{setting.key} ({section.variant})"
        assert section.head.meaning, place
        assert setting.meaning, place
        assert "value" not in setting.kind, place
        assert setting.default != "", place


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_meaning_is_left_of_a_setting_that_is_gone(system: str) -> None:
    for section in {
        *list_sections(find_schema(system)),
        *(kind.schema for kind in SHIELDS.values()),
    }:
        assert read_meanings(section).keys() <= section.model_fields.keys(), section.__name__


def list_sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from list_sections(part)


def test_units_stand_where_there_are_some() -> None:
    units = {setting.key: setting.unit for system in SYSTEMS for _, setting in list_rows(system)}
    assert units["client.timeout"] == "seconds"
    assert units["data.image_size"] == units["data.margin"] == "pixels"
    assert units["training.batch_size"] == "images"
    assert units["split.budget.epsilon"] == "ε of one record"
    assert units["themis.update"] == ""


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_key_of_a_shipped_experiment_is_listed(name: str) -> None:
    values = read_values(name)
    keys = list_keys(values.get("system", "themis"))
    for section in [key for key, value in values.items() if isinstance(value, dict)]:
        for case in values[section].get("cases", {}).values():
            assert set(list_given(case, keys, f"{section}.")) <= keys
    assert set(list_given(values, keys)) <= keys


def list_given(values: dict[str, Any], known: set[str], place: str = "") -> Iterator[str]:
    """Yield the keys that are given; those in a mapping with free keys are no settings."""
    for key, value in values.items():
        yield (given := f"{place}{key}")
        step = f"{given}.0." if isinstance(value, list) else f"{given}."
        if any(other.startswith(step) for other in known):
            for item in value if isinstance(value, list) else [value or {}]:
                yield from list_given(item, known, step)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_default_can_be_set_and_is_the_one_that_holds(system: str) -> None:
    values, refused = read_values(find_quick_experiment(system)), {}
    for section, setting in list_rows(system):
        if setting.default is None:
            continue
        overrides = [*complete(system, section), f"{setting.key}={setting.default}"]
        try:
            settings = validated(find_schema(system), deepcopy(values), "", overrides)
        except RequestError as error:
            refused[setting.key] = str(error)
            continue
        found = find_value(settings.model_dump(mode="json", by_alias=True), setting.key)
        if setting is not section.head and not setting.key.endswith(".0.name"):  # by its model
            assert found == yaml.safe_load(setting.default), setting.key
    expected = REFUSED.get(system, {})
    assert refused.keys() == expected.keys()
    assert all(expected[key] in refused[key] for key in refused)


def complete(system: str, section: Section) -> list[str]:
    """Return what must be given besides a section, and in it."""
    overrides = [f"{system}.cases={{}}"] if f"{system}.cases" in list_keys(system) else []
    for outer in describe(system):
        is_around = f"{section.head.key}.".startswith(f"{outer.head.key}.")
        if is_around and (outer is section or not outer.variant):
            ends = [s.key.rpartition(".")[2] for s in outer.settings if s.default is None]
            given = {end: REQUIRED[end] for end in ends if end in REQUIRED}
            given |= dict([outer.variant.split(": ")]) if outer.variant else {}
            overrides += NEEDED.get(outer.head.key, [])
            overrides += [f"{outer.head.key}={json.dumps(given)}"] if given else []
    return overrides


def find_value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_sections_own_default_is_what_holds_without_it(system: str) -> None:
    data = {"attributes": ["label=0"]} if system == "facemix" else {}
    nothing = find_schema(system).model_validate({"system": system, "data": data})
    without = nothing.model_dump(mode="json", by_alias=True)
    overrides = [f"{system}={{}}", *([f"data={json.dumps(data)}"] if data else [])]
    for section, setting in list_rows(system):
        outer = setting.key.rpartition(".")[0]
        if setting is section.head and setting.key != "data" and find_parent(without, outer):
            given = load_experiment(
                find_quick_experiment(system), [*overrides, f"{setting.key}={setting.default}"]
            )
            found = given.model_dump(mode="json", by_alias=True)
            assert find_value(found, setting.key) == find_value(without, setting.key), setting.key


def find_parent(values: Any, key: str) -> bool:
    """Tell whether there is a section at a key."""
    try:
        return bool(find_value(values, key)) if key else True
    except (KeyError, TypeError, IndexError):
        return False


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    place: Any = values
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    place[last] = value
    return values


def find_problems(values: dict[str, Any]) -> list[str]:
    schema = build_json_schema(find_schema(values.get("system", "themis")))
    return [error.message for error in Draft202012Validator(schema).iter_errors(values)]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_schema_accepts_every_shipped_experiment(name: str) -> None:
    assert find_problems(read_values(name)) == []


@pytest.mark.parametrize(
    ("system", "key", "value"),
    [
        ("split", "data.split", "9:1"),
        ("split", "data.splits", {"train": "fit*", "test": ["holdout", "late-*"]}),
        ("split", "data.splits", "none"),
        ("split", "data.image_size", [20, 16]),
        ("split", "data.partition", None),
        ("split", "split.shield", {"name": "clip-gaussian", "epsilon": None}),
        ("split", "split.shield", {"name": "none"}),
        ("split", "split.cases", {"a": {"shield.epsilon": 3}, "b": {"front": "frozen"}}),
        ("facemix", "data.attributes", "label=0"),
        ("facemix", "facemix.shield", None),
        ("themis", "themis.lambda", 3),
        ("themis", "themis.weight", 3),
        ("themis", "themis.clip", None),
        ("themis", "themis.examiner", None),
        ("themis", "themis.order", "random"),
        ("themis", "themis.hostile", {"MLP": "nan"}),
        ("themis", "themis.stages.join.closes", "2030-12-01T18:00:00+01:00"),
        ("themis", "participants", []),
        ("dlmt", "dlmt.shield", "MAT(256)"),
    ],
)
def test_what_the_loader_accepts_the_schema_accepts(system: str, key: str, value: Any) -> None:
    name = find_quick_experiment(system)
    load_experiment(name, [f"{key}={json.dumps(value)}"])
    assert find_problems(put(read_values(name), key, value)) == []


@pytest.mark.parametrize(
    ("system", "key", "value"),
    [
        ("themis", "sead", 1),
        ("themis", "data.nam", "digits"),
        ("themis", "themis.lamda", 3),
        ("themis", "themis.release.drawz", 1),
        ("themis", "participants.0.modle", "mlp"),
        ("themis", "themis.cases", {"a": {"uptade": "joint"}}),
        ("themis", "themis.cases", {"a": {"release": {}}}),
        ("themis", "themis.update", "jointly"),
        ("themis", "themis.M", 0),
        ("split", "split.shield.epsilonn", 1),
        ("split", "split.shield", {"epsilon": 1}),
        ("split", "split.shield", {"group": 4}),
        ("split", "split.shield", {"name": "mixin"}),
        ("split", "split.cases", {"a": {"shild.epsilon": 1}}),
        ("facemix", "facemix.training.optimizer.lr", 1),
        ("dlmt", "dlmt.training.patience", 3),
    ],
)
def test_what_the_schema_refuses_the_loader_refuses(system: str, key: str, value: Any) -> None:
    name = find_quick_experiment(system)
    with pytest.raises(RequestError):
        load_experiment(name, [f"{key}={json.dumps(value)}"])
    assert find_problems(put(read_values(name), key, value))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_command_prints_a_valid_schema_with_descriptions(
    pudica: Callable[..., Result], system: str
) -> None:
    schema = json.loads(pudica("settings", system, "--json-schema").stdout)
    Draft202012Validator.check_schema(schema)
    for section in [schema, *schema["$defs"].values()]:
        assert section["description"]
        assert section["additionalProperties"] is False
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in str(field), key


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("system", SYSTEMS)
def test_everything_is_printed_within_eighty_columns(
    pudica: Callable[..., Result], system: str, columns: int
) -> None:
    said = pudica("settings", system, COLUMNS=str(columns)).stdout
    assert max(map(len, said.splitlines())) <= min(columns, 80)
    assert "\x1b" not in said  # no colours where there is no terminal
    words = " ".join(said.split())
    for _, setting in list_rows(system):
        assert setting.meaning in words
        assert columns == 40 or f" {setting.key} " in f" {words} ", setting.key


def test_variants_of_a_section_say_which_they_are(pudica: Callable[..., Result]) -> None:
    said = pudica("settings", "split", "split.shield").stdout
    parts = said.split("\n\n")
    assert parts[0].startswith("split.shield\n  section; default: {name: none}\n")
    assert "one of batch-norm-laplace, clip-gaussian" in parts[0]
    (clip,) = (part for part in parts if part.startswith("split.shield (name: clip-gaussian)\n"))
    assert (
        "  split.shield.epsilon\n      number above 0 or null; in ε of one record; required" in clip
    )
    assert "group" not in clip


@pytest.mark.parametrize(
    ("prefix", "present", "absent"),
    [
        ("themis.release", "themis.release.draws", "themis.epochs"),
        ("themis.M", "themis.M", "themis.release.M"),
        ("participants.3.training", "participants.0.training.epochs", "participants.0.model"),
        ("seed", "seed", "description"),
    ],
)
def test_a_prefix_selects_what_is_below_it(
    pudica: Callable[..., Result], prefix: str, present: str, absent: str
) -> None:
    said = pudica("settings", "themis", prefix).stdout.split()
    assert present in said
    assert absent not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("temis",), "unknown system 'temis'. Did you mean 'themis'? Allowed: dlmt, "),
        (("split", "splti"), "unknown setting 'splti'. Did you mean 'split'? Allowed: client, "),
        (("split", "split.shild.epsilon"), "'split.shild'. Did you mean 'split.shield'?"),
        (("split", "split.budget.epsilo"), "Did you mean 'split.budget.epsilon'? Allowed: "),
        (("split", "epsilon"), "Did you mean 'split.budget.epsilon' or 'split.shield.epsilon'?"),
        (("split", "seed.x"), "unknown setting 'seed.x'. Did you mean 'seed'?"),
        (("split", "data", "--json-schema"), "--json-schema: is of a whole experiment"),
    ],
)
def test_a_wrong_name_is_refused_with_those_that_are_near(
    pudica: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    done = pudica("settings", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("field", "one", "many"),
    [
        ({"type": "number", "exclusiveMinimum": 0}, "number above 0", "numbers above 0"),
        ({"enum": ["a", "b"]}, "one of a, b", "any of a, b"),
        ({"type": "boolean"}, "true or false", "true or false"),
        ({"type": "string", "format": "path"}, "path", "paths"),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 2},
            "list of at least 2 whole numbers",
            "lists of at least 2 whole numbers",
        ),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null", "texts or null"),
        (
            {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
            "one of a, b, or null",
            "any of a, b, or null",
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
            "mapping of names to whole numbers at least 0",
            "mappings of names to whole numbers at least 0",
        ),
        ({}, "value", "values"),
    ],
)
def test_types_are_said_in_words(field: dict[str, Any], one: str, many: str) -> None:
    assert describe_kind(field) == one
    assert describe_kind(field, many=True) == many


class Coin(BaseModel):
    """Toss a coin."""

    fair: bool = Field(default=True, description="Whether both sides are as likely.")


class Dice(BaseModel):
    """Throw dice.

    Attributes
    ----------
    sides, count : int, in numbers
        How many there are.
    """

    sides: int = Field(default=6, ge=2)
    count: int


class Game(BaseModel):
    """What another package may bring: any kind of field that pydantic has."""

    either: Coin | Dice = Field(default=Coin(fair=False), description="One of two.")
    several: list[Dice] | None = Field(default=None, description="Some dice.")


def test_sections_of_any_package_are_described() -> None:
    either, coin, dice, several = describe_settings(Game)[1:]
    assert (either.head.kind, either.head.default) == ("section", "{fair: false}")
    assert (coin.variant, dice.variant) == ("1 of 2", "2 of 2")
    expected = Setting(
        "either.fair", "true or false", "true", "", "Whether both sides are as likely."
    )
    assert coin.settings == (expected,)
    sides = Setting(
        "either.sides", "whole number at least 2", "6", "numbers", "How many there are."
    )
    assert dice.settings == (
        sides,
        replace(sides, key="either.count", kind="whole number", default=None),
    )
    assert several.head.kind == "list of sections or null"
    assert [setting.key for setting in several.settings] == ["several.0.sides", "several.0.count"]


def test_the_reference_has_a_page_of_each_system(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    place = Path(__file__).parents[2] / "docs" / "reference" / "settings_pages.py"
    spec = importlib.util.spec_from_file_location("settings_pages", place)
    assert spec
    assert spec.loader
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    pages.write_pages(SimpleNamespace(srcdir=tmp_path))
    for system in SYSTEMS:
        text = (tmp_path / "settings" / f"{system}.rst").read_text(encoding="utf-8")
        for section, setting in list_rows(system):
            is_heading = setting is section.head
            assert (f"\n{setting.key}\n" if is_heading else f"\n``{setting.key}``\n") in (
                text.replace("\\", "")
            )
