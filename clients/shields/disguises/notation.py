"""The notation of disguises: ``MAT(256)+MMT(10)``, ``Sharma(2, noise=50)+…``."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from pudica.clients.shields.disguises.baselines import Blur, GaussianNoise, Kiya, Sharma
from pudica.clients.shields.disguises.matrix import Addition, Multiplication, Rise
from pudica.clients.shields.disguises.steps import LARGEST, Span, Step
from pudica.models.errors import RequestError, unknown_name_error

STEPS: dict[str, type[Step]] = {
    step.name: step for step in (Addition, Multiplication, Rise, Sharma, Kiya, GaussianNoise, Blur)
}
"""All steps by name."""

_PLUS = re.compile(r"\+(?![^(]*\))")  # but not the + of 1e+3 in parentheses
_STEP = re.compile(r"\s*([A-Za-z]+)\s*(?:\(([^()]*)\))?\s*")
_WORDS = {
    "pixels": "pixels (0 to 255)",
    "integers": "whole numbers",
    "numbers": "real numbers",
}


def parse_notation(notation: str) -> tuple[Step, ...]:
    """Return the steps of a disguise, in the order in which they are applied.

    It has names of :data:`STEPS` with their settings, joined by ``+``; case does not matter.
    RequestError if it is empty or unknown, or its steps can't follow each other.
    """
    steps = tuple(_parse_step(part) for part in _PLUS.split(notation))
    compute_spans(steps)
    return steps


def format_notation(steps: tuple[Step, ...]) -> str:
    """Return steps in canonical notation."""
    return "+".join(map(str, steps))


def compute_spans(steps: tuple[Step, ...]) -> list[Span]:
    """Return the range of the values before the first step and after each step.

    RequestError if a step can't take the values of the one before, or numbers become too large.
    """
    ranges = [Span()]
    for number, step in enumerate(steps):
        before = ranges[-1]
        if before.kind not in ("pixels", step.takes):
            raise RequestError(
                f"{step} can't come after {format_notation(steps[:number])}: it takes "
                f"{_WORDS[step.takes]}, and there are {_WORDS[before.kind]}"
            )
        after = step.span(before)
        if after.high >= LARGEST:
            raise RequestError(
                f"{format_notation(steps[: number + 1])} gives numbers up to {after.high:.3g}; "
                f"allowed: below 2^53, which are exact"
            )
        ranges.append(after)
    return ranges


def _parse_step(text: str) -> Step:
    match = _STEP.fullmatch(text)
    if match is None:
        raise RequestError(
            f"'{text.strip()}' is not a step of a disguise; write for example MAT(256)+MMT(10)"
        )
    name, settings = match.groups(default="")
    known = {each.lower(): step for each, step in STEPS.items()}
    if name.lower() not in known:
        raise unknown_name_error("transformation", name, STEPS)
    step = known[name.lower()]
    return step(**_parse_settings(step, settings))


def _parse_settings(step: type[Step], text: str) -> dict[str, float]:
    names = [field.name for field in fields(step)]
    shown = ", ".join([*names[:1], *(f"{name}=0" for name in names[1:])])
    usage = f"write {step.name}({shown})" if shown else f"write {step.name}"
    settings: dict[str, float] = {}
    for position, part in enumerate(filter(None, map(str.strip, text.split(",")))):
        key, equals, value = part.rpartition("=")
        key = key.strip() if equals else names[0] if names and position == 0 else ""
        if key not in names or key in settings:
            raise RequestError(f"{step.name}: '{part}' is not understood; {usage}")
        try:
            number = float(value)
        except ValueError as error:
            raise RequestError(
                f"{step.name}: {key} must be a number, is '{value.strip()}'; {usage}"
            ) from error
        settings[key] = int(number) if number.is_integer() else number
    if missing := [f.name for f in fields(step) if f.default is MISSING and f.name not in settings]:
        raise RequestError(f"{step.name}: {', '.join(missing)} is missing; {usage}")
    return settings
