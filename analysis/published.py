"""Published tables, and measured ones beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica import models
from pudica.analysis.runs import Run
from pudica.clients.data.registry import lookup
from pudica.models.errors import RequestError

# Matched to the paper's rows, besides the task; participants may have any name.
ARCHITECTURE = "architecture"


@cache
def load_paper_table(name: str) -> pd.DataFrame:
    """Load a published table from the folder ``paper``; accuracies in per cent."""
    with (files("pudica.analysis") / "paper" / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def label_published(run: Run, names: Iterable[str]) -> dict[str, Any]:
    """Return the columns that identify run, task and architectures of a table's rows."""
    data = run.settings["data"]
    task = str(data["name"])
    if task == "utkface":
        task = f"utkface_{data.get('label') or lookup('utkface').label}"
    models_of = {p["name"]: p["model"] for p in run.settings["participants"]}
    return {
        "task": task,
        ARCHITECTURE: [_published_name(models_of.get(name, "")) for name in names],
        "run": run.name,
        "experiment": run.info.get("experiment", ""),
    }


def _published_name(model: str) -> str:
    """Return the published name of an architecture; a cheating model has none."""
    try:
        return models.display_name(model) if model else ""
    except RequestError:
        return model


def compare_published(
    parts: Iterable[pd.DataFrame | None],
    paper: pd.DataFrame,
    measured: Sequence[str],
    further: Sequence[str],
    last: Sequence[str],
) -> pd.DataFrame:
    """Stack the parts, and add what is published of the same tasks and architectures."""
    there = [part for part in parts if part is not None]
    table = pd.concat(there, ignore_index=True) if there else pd.DataFrame()
    first = ["task", "model", *measured, *further, ARCHITECTURE, *last]
    table = table.reindex(columns=[*first, *(name for name in table if name not in first)])
    keys = table[["task", ARCHITECTURE]].rename(columns={ARCHITECTURE: "model"})
    # Ranks are nullable integers.
    whole = {name: "Int64" for name in measured if "accuracy" not in name}
    published = keys.merge(paper, on=["task", "model"], how="left").astype(whole)
    table = table.astype(whole)
    for name in measured:
        table[f"{name}_published"] = published[name]
        table[f"{name}_difference"] = table[name] - published[name]
    return _move_to_end(table.drop(columns=ARCHITECTURE), last)


def _move_to_end(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[[*table.columns.drop(list(names)), *names]]
