"""``pudica privacy``: what was released in a run, and what guarantee a record has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pudica.analysis.guarantees import CaseVerdict, LedgerReport, build_ledger_report
from pudica.analysis.runs import open_runs


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
    reports = [build_ledger_report(run, delta) for run in open_runs(list(runs))]
    return [
        RunReport(
            f"Releases of {report.run}, all of a record at δ = {report.delta:g}",
            report.table,
            list(_format_lines(report)),
        )
        for report in reports
    ]


def _format_lines(report: LedgerReport) -> Iterator[str]:
    yield from (f"  {remark}" for remark in report.remarks)
    for case in report.cases:
        yield from ("", *_format_case(case))
    if report.together:
        yield from ("", f"all cases together, for one record: {report.together}")


def _format_case(case: CaseVerdict) -> Iterator[str]:
    """Yield what is claimed of a case, what holds, and why."""
    yield case.case
    yield from (f"  claimed: {claim}" for claim in case.claimed)
    yield f"  holds for {case.record}: {case.holds}"
    yield from (f"    {reason}" for reason in case.reasons)
    yield from (f"  holds for a {what} image: {holds}" for what, holds in case.held_out.items())
