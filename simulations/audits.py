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
from strategies.explain import explained, misplaced_booleans


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
        for key in misplaced_booleans(values, config.model_dump()):
            raise RequestError(f"--set: {key}: must be a number, not true or false")
    except ValidationError as error:
        raise RequestError("\n".join(explained(error, schema, name, keys))) from error
    shield = build(config, _shape(shape), batch)
    if not isinstance(shield, Mechanism):
        raise RequestError(f"shield '{name}' adds no noise, there is nothing to audit")
    return audit(shield, samples, seed=seed)


def table(result: Audit) -> pd.DataFrame:
    """Return a row for each thing that is said of the shield."""
    delta = result.held.delta
    shown = f"ε ≥ {result.lower_bound(delta):.4g}{f' (δ = {delta:g})' if delta else ''}"
    rows = [
        ("claimed", str(result.claimed)),
        ("held", str(result.held)),
        ("shown", f"{shown} for one record"),
    ]
    return pd.DataFrame(rows, columns=["what is", "guarantee"])


def reasons(result: Audit) -> list[str]:
    """Return a line for each thing that a row of the table rests on."""
    outputs = f"{result.samples:,} outputs of each neighbour"
    because = {
        "claimed": result.claimed.reasons,
        "held": result.held.reasons,
        "shown": (f"by attack, with {100 * result.confidence:g} % confidence, on {outputs}",),
    }
    return [f"  {word}: {reason}" for word, each in because.items() for reason in each]


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
    if result.refutes(guarantee):
        return "REFUTED"
    if result.could_refute(guarantee):
        return "not refuted"
    return f"not refuted, but so many outputs could show no more than ε = {result.ceiling:.2g}"


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise RequestError(f"--shape: '{text}' is no shape; write it as in 80x4x4")
    return tuple(int(word) for word in text.split("x"))
