"""``pudica privacy``: what was released in a run, and what guarantee a record has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pudica.analysis.privacy import (
    COUNTED,
    privacy,
    verdict,
    verdict_of_all,
    verdict_on_held_out,
)
from pudica.analysis.runs import Run, open_runs
from pudica.clients.shields import Guarantee


class RunReport(NamedTuple):
    """What is printed for a run."""

    title: str
    table: pd.DataFrame
    lines: list[str]


def build_reports(runs: Sequence[Path], delta: float) -> list[RunReport]:
    """Build a report for each run, for one δ of all releases of a record together.

    Raises
    ------
    RequestError
        As :func:`pudica.analysis.privacy.privacy`.
    """
    return [_build_report(run, delta) for run in open_runs(list(runs))]


def _build_report(run: Run, delta: float) -> RunReport:
    directory = run.directory
    frame = privacy(directory, delta)
    lines = []
    for row in frame.to_dict("records"):
        mechanism = "" if row["mechanism"] == "none" else f", {row['mechanism']}"
        lines += [f"  {row['what']}{mechanism}: {reason}" for reason in row["reasons"]]
    lines = list(dict.fromkeys(lines))
    if run.disguise:
        lines.insert(0, f"  images: disguised in advance, {run.disguise}: no guarantee")
    held_out = verdict_on_held_out(directory, delta)
    for case, guarantee in verdict(directory, delta).items():
        lines += ["", *_format_verdict(case, frame[frame["case"] == case], guarantee)]
        lines += [
            f"  holds for a {records} image: {_format_guarantee(found)}"
            for (name, records), found in held_out.items()
            if name == case
        ]
    if len(frame["case"].unique()) > 1:
        together = verdict_of_all(directory, delta)
        lines += ["", f"all cases together, for one record: {_format_guarantee(together)}"]
    title = f"Releases of {run.name}, all of a record at δ = {delta:g}"
    return RunReport(title, _format_table(frame), lines)


def _format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's narrow columns, with ε to four significant digits."""
    shown = frame[["case", "what", "records", "nodes", "count", "mechanism", "randomness"]].copy()
    single = zip(frame["record_epsilon"], frame["record_delta"], strict=True)
    shown["single"] = [_format_epsilon(epsilon, delta) for epsilon, delta in single]
    shown = shown.rename(columns={"count": "at most"})
    shown["composed"] = frame["composed_epsilon"].map(_format_epsilon)
    shown["RDP"] = frame["composed_rdp"].map(_format_epsilon)
    return shown


def _format_epsilon(epsilon: Any, delta: Any = 0.0) -> str:
    if pd.isna(epsilon):
        return "-"
    return f"{epsilon:.4g} (δ = {delta:.4g})" if delta else f"{epsilon:.4g}"


def _format_verdict(case: str, rows: pd.DataFrame, guarantee: Guarantee) -> Iterator[str]:
    """Yield what is claimed of a case, what holds, and why."""
    yield case
    claimed = rows[rows["records"].isin(COUNTED) & (rows["claimed"] != "nothing")]
    releases = zip(claimed["claimed"], claimed["what"], strict=True)
    claims = [f"{claim} ({what}, one release)" for claim, what in releases]
    yield from (f"  claimed: {claim}" for claim in dict.fromkeys(claims or ["nothing"]))
    record = "a served image" if (rows["records"] == "served").any() else "a training record"
    yield f"  holds for {record}: {_format_guarantee(guarantee)}"
    yield from (f"    {reason}" for reason in guarantee.reasons)


def _format_guarantee(guarantee: Guarantee) -> str:
    return str(guarantee).removesuffix(f" for one {guarantee.unit}")
