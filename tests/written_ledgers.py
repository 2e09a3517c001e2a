"""Ledgers as split learning leaves them in a run's directory, written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CLIPPED = {"name": "clip-gaussian", "epsilon": 3.0, "delta": 1e-5, "clip": 1.0}
CLIPPED_L1 = {"name": "clip-laplace", "epsilon": 1.0, "clip": 1.0}
NORMALISED = {"name": "batch-norm-laplace", "epsilon": 5.0, "sensitivity": "experiments"}


def entry(**values: Any) -> dict[str, Any]:
    """Return an entry of a device's smashed data, sent five times, with some values changed."""
    return {
        "case": "main",
        "node": "device-0",
        "what": "smashed data",
        "records": "training",
        "shape": [16],
        "batch": 64,
        "count": 5,
        "shield": CLIPPED,
        "mode": "train",
        "trained_front": False,
        "public": False,
        "sampling": "",
        "randomness": "secret",
        "statistics": False,
        "integers": True,
        "dp": None,
        **values,
    }


def labels(**values: Any) -> dict[str, Any]:
    declared = {"shape": [1], "shield": None, "public": True, "randomness": "none"}
    return entry(what="labels", **{**declared, **values})


def in_the_clear(what: str, **values: Any) -> dict[str, Any]:
    return entry(what=what, **{"shield": None, "randomness": "none", **values})


def write_ledger(
    directory: Path, entries: Iterable[dict[str, Any]] | str | None, system: str = "split"
) -> Path:
    """Write a run with some entries, with a text in their place, or without a ledger."""
    directory.mkdir(parents=True)
    info = {"run": directory.name, "system": system, "experiment": "written", "status": "done"}
    (directory / "run.json").write_text(json.dumps(info))
    (directory / "experiment.yaml").write_text("name: written\n")
    (directory / "metrics.jsonl").write_text("")
    if entries is not None:
        text = entries if isinstance(entries, str) else json.dumps(list(entries))
        (directory / "releases.json").write_text(text)
    return directory
