"""The settings of a system as text: for a terminal, and for editors."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator

import typer

from pudica.models.errors import RequestError
from pudica.simulations.settings import (
    Section,
    describe_settings,
    describe_values,
    name_section,
    select_settings,
)
from pudica.simulations.settings_schema import build_json_schema
from pudica.strategies.loading import find_schema

WIDTH = 80
INTRODUCTION = (
    "Every setting of the system {system}. Set one by --set KEY=VALUE, or in the experiment's "
    "file, where a dot leads into a section and a number is a place in a list. A section that is "
    "given has the defaults listed below it; its own default, where one stands beside it, holds "
    "if it is left out altogether."
)


def format_json_schema(system: str, prefix: str | None = None) -> str:
    """Return the JSON Schema of a system's experiments.

    Raises
    ------
    RequestError
        There is no such system, or only a part of the schema is asked for.
    """
    if prefix:
        raise RequestError(f"--json-schema: is of a whole experiment; leave '{prefix}' out")
    return json.dumps(build_json_schema(find_schema(system)), indent=2, ensure_ascii=False)


def format_settings(system: str, prefix: str | None = None) -> str:
    """Return every setting of a system, or those below a prefix, for a terminal.

    Raises
    ------
    RequestError
        There is no such system, or nothing below the prefix.
    """
    sections = describe_settings(find_schema(system))
    chosen = select_settings(sections, prefix) if prefix else sections
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    parts = ["\n".join(_format_section(section, width)) for section in chosen]
    if not prefix:
        parts.insert(0, "\n".join(_wrap(INTRODUCTION.format(system=system), 0, width)))
    return "\n\n".join(parts)


def _format_section(section: Section, width: int) -> Iterator[str]:
    head = section.head
    if head.key:
        yield from _wrap(name_section(section), 0, width, bold=True, underline=True)
        yield from _wrap(describe_values(head), 2, width, dim=True)
    yield from _wrap(head.meaning, 2 if head.key else 0, width)
    for setting in section.settings:
        yield from _wrap(setting.key, 2, width, bold=True)
        yield from _wrap(describe_values(setting), 6, width, dim=True)
        yield from _wrap(setting.meaning, 6, width)


def _wrap(text: str, indent: int, width: int, **style: bool) -> Iterator[str]:
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
    yield from (typer.style(line, **style) if style else line for line in lines)  # type: ignore[arg-type]
