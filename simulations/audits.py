"""``pudica audit``: what a shield claims, what holds, and what an attack shows."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from pydantic import ValidationError

from analysis.audit import Audit, audit
from clients.shields import SHIELDS, Guarantee, Mechanism, build
from models.errors import RequestError, unknown
from strategies.experiment import override
from strategies.explain import explained


def run(name: str, settings: list[str], shape: str, batch: int, samples: int, seed: int) -> Audit:
    """Audit a shield.

    Parameters
    ----------
    name : str
        Of :data:`clients.shields.SHIELDS`.
    settings : list of str
        ``KEY=VALUE``, of the shield.
    shape : str
        Of one example, as in ``80x4x4``.

    Raises
    ------
    RequestError
        If there is no such shield, it has no noise, or a setting is wrong.
    """
    if name not in SHIELDS:
        raise unknown("shield", name, SHIELDS)
    schema, _ = SHIELDS[name]
    values: dict[str, Any] = {"name": name}
    keys = [override(values, text) for text in settings]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(explained(error, schema, name, keys))) from error
    shield = build(config, _shape(shape), batch)
    if not isinstance(shield, Mechanism):
        raise RequestError(f"shield '{name}' adds no noise, there is nothing to audit")
    return audit(shield, samples, seed=seed)


def table(result: Audit) -> pd.DataFrame:
    """Return a row for each thing that is said of the shield."""
    confidence = f"{100 * result.confidence:g} %"
    shown = f"ε ≥ {result.lower_bound:.4g} for one record"
    rows = [
        ("claimed", str(result.claimed), "; ".join(result.claimed.reasons)),
        ("held", str(result.held), "; ".join(result.held.reasons)),
        ("shown", shown, f"by attack, confidence {confidence}, {result.samples:,} outputs each"),
    ]
    return pd.DataFrame(rows, columns=["", "guarantee", "because"])


def verdicts(result: Audit) -> list[str]:
    """Return what the attack says of either guarantee."""
    return [
        f"{label}: {_verdict(result, guarantee)}"
        for label, guarantee in (
            ("the claim, read for a record", result.claimed),
            ("what holds", result.held),
        )
    ]


def _verdict(result: Audit, guarantee: Guarantee) -> str:
    if guarantee.epsilon is None:
        return "promises nothing"
    return "REFUTED" if result.refutes(guarantee) else "not refuted"


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise RequestError(f"--shape: '{text}' is no shape; write it as in 80x4x4")
    return tuple(int(word) for word in text.split("x"))
