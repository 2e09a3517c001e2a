"""``pudica audit``: what a shield claims, what holds, and what an attack shows."""

from __future__ import annotations

import pandas as pd

from pudica.analysis.audit import Audit, audit
from pudica.clients.shields import Guarantee, Mechanism, build, find_shield
from pudica.models.errors import RequestError
from pudica.strategies.loading import validated


def audit_shield(
    name: str, settings: list[str], shape: tuple[int, ...], batch: int, samples: int, seed: int
) -> Audit:
    """Audit a shield by its name, for examples of a shape.

    Raises
    ------
    RequestError
        If there is no such shield, it has no noise, or a setting ``KEY=VALUE`` is not valid.
    """
    schema = find_shield(name).schema
    shield = build(validated(schema, {"name": name}, name, settings), shape, batch)
    if not isinstance(shield, Mechanism) or shield.is_noiseless:
        raise RequestError(
            f"shield '{name}' has no noise with a guarantee, there is nothing to audit"
        )
    return audit(shield, samples, seed=seed)


def build_table(result: Audit) -> pd.DataFrame:
    """Return a table of the claimed guarantee, the one that holds, and the lower bound shown."""
    delta = result.guarantee.delta
    shown = f"ε ≥ {result.lower_bound(delta):.4g}{f' (δ = {delta:g})' if delta else ''}"
    rows = [
        ("claimed", str(result.claimed)),
        ("held", str(result.guarantee)),
        ("shown", f"{shown} for one record"),
    ]
    return pd.DataFrame(rows, columns=["what is", "guarantee"])


def describe(result: Audit) -> list[str]:
    """Return the reasons behind the rows of the table, and whether each guarantee is refuted."""
    outputs = f"{result.samples:,} outputs of each neighbour"
    reasons = {
        "claimed": result.claimed.reasons,
        "held": result.guarantee.reasons,
        "shown": (f"by attack, with {100 * result.confidence:g} % confidence, on {outputs}",),
    }
    return [
        *(f"  {word}: {reason}" for word, each in reasons.items() for reason in each),
        "",
        f"the claim, read for a record: {_describe_verdict(result, result.claimed)}",
        f"what holds: {_describe_verdict(result, result.guarantee)}",
    ]


def _describe_verdict(result: Audit, guarantee: Guarantee) -> str:
    if guarantee.epsilon is None:
        return "promises nothing"
    if result.refutes(guarantee):
        return "REFUTED"
    if result.could_refute(guarantee):
        return "not refuted"
    return f"not refuted, but this many outputs could show no more than ε = {result.ceiling:.2g}"
