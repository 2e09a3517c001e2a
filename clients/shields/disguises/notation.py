"""The notation of disguises: ``MAT(256)+MMT(10)``, ``Sharma(2, noise=50)+…``."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from pudica.clients.shields.disguises.kiya import Kiya
from pudica.clients.shields.disguises.matrix import Addition, Multiplication, Rise
from pudica.clients.shields.disguises.pictures import Blur, GaussianNoise
from pudica.clients.shields.disguises.sharma import Sharma
from pudica.clients.shields.disguises.steps import LARGEST, Span, Step
from pudica.models.errors import RequestError, unknown_name_error

STEPS: dict[str, type[Step]] = {
    step.name: step for step in (Addition, Multiplication, Rise, Sharma, Kiya, GaussianNoise, Blur)
}
"""Every step by its name."""

_PLUS = re.compile(r"\+(?![^(]*\))")  # not that of 1e+3 in parentheses
_STEP = re.compile(r"\s*([A-Za-z]+)\s*(?:\(([^()]*)\))?\s*")


def parse_notation(notation: str) -> tuple[Step, ...]:
    """Return the steps of a disguise, in the order in which they are applied.

    Parameters
    ----------
    notation : str
        Names of :data:`STEPS` with their settings, joined by ``+``; upper or lower case.

    Raises
    ------
    RequestError
        If it says nothing, something unknown, or steps that can't follow each other.
    """
    steps = tuple(_parse_step(part) for part in _PLUS.split(notation))
    compute_spans(steps)
    return steps


def format_notation(steps: tuple[Step, ...]) -> str:
    """Return steps in the notation; the same steps in the same words."""
    return "+".join(map(str, steps))


def compute_spans(steps: tuple[Step, ...]) -> list[Span]:
    """Return where the values lie before the first step, and after each.

    Raises
    ------
    RequestError
        If a step can't take what the one before gives, or numbers become too large.
    """
    found = [Span()]
    for step in steps:
        before = found[-1]
        if before.kind != "pixels" and before.kind != step.takes:
            raise RequestError(
                f"{step} can't come after {format_notation(steps[: len(found) - 1])}: it takes "
                f"{_WORDS[step.takes]}, and there are {_WORDS[before.kind]}"
            )
        found.append(step.span(before))
        if found[-1].high >= LARGEST:
            raise RequestError(
                f"{format_notation(steps[: len(found) - 1])} gives numbers up to {found[-1].high:.3g}; "
                f"allowed: below 2^53, which are exact"
            )
    return found


_WORDS = {
    "pixels": "pixels (0 to 255)",
    "integers": "whole numbers",
    "numbers": "real numbers",
}


def _parse_step(text: str) -> Step:
    match = _STEP.fullmatch(text)
    if match is None:
        raise RequestError(
            f"'{text.strip()}' is no step of a disguise; write for example MAT(256)+MMT(10)"
        )
    name, settings = match.groups()
    known = {each.lower(): step for each, step in STEPS.items()}
    if name.lower() not in known:
        raise unknown_name_error("transformation", name, STEPS)
    step = known[name.lower()]
    return step(**_parse_settings(step, settings or ""))


def _parse_settings(step: type[Step], text: str) -> dict[str, float]:
    names = [field.name for field in fields(step)]
    found: dict[str, float] = {}
    for position, part in enumerate(filter(None, map(str.strip, text.split(",")))):
        key, equals, value = part.rpartition("=")
        key = key.strip() if equals else names[0] if names and position == 0 else ""
        if key not in names or key in found:
            raise RequestError(f"{step.name}: '{part}' is not understood; {_format_usage(step)}")
        try:
            found[key] = float(value)
        except ValueError as error:
            raise RequestError(
                f"{step.name}: {key} must be a number, is '{value.strip()}'; {_format_usage(step)}"
            ) from error
    if missing := [f.name for f in fields(step) if f.default is MISSING and f.name not in found]:
        raise RequestError(f"{step.name}: {', '.join(missing)} is missing; {_format_usage(step)}")
    return found


def _format_usage(step: type[Step]) -> str:
    first, *others = [field.name for field in fields(step)] or [""]
    settings = ", ".join([first, *(f"{name}=0" for name in others)])
    return f"write {step.name}({settings})" if first else f"write {step.name}"
