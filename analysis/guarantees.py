"""What a run promises for a record, in words: what is claimed, what holds, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from pudica.analysis.privacy import (
    COUNTED,
    DELTA,
    privacy,
    verdict,
    verdict_of_all,
    verdict_on_held_out,
)
from pudica.analysis.runs import Run, select
from pudica.analysis.themis import competition_settings, themis_protection
from pudica.clients.shields import Guarantee
from pudica.strategies.core.releases import DP_SGD

NO_PROMISE = (
    "A competition promises no differential privacy and keeps no ledger: how well its noise hides "
    "the test images is measured."
)
COMPARED = "The plain test images are released as well, to compare with (themis.release.compare)."
SEEDED = (
    "The noise is drawn from the run's seed, and whoever knows that can take it off "
    "(themis.release.secret)."
)


@dataclass(frozen=True)
class CaseVerdict:
    """The guarantee of a case.

    Attributes
    ----------
    record : str
        What it is for: "a training record" or "a served image".
    claimed : tuple of str
        By the shields' papers, for one release.
    holds : str
        Of all releases together.
    reasons : tuple of str
        Assumptions of the guarantee, or why there is none.
    held_out : dict of str to str
        What holds for a validation or test image, where something is promised for it.
    """

    case: str
    record: str
    claimed: tuple[str, ...]
    holds: str
    reasons: tuple[str, ...]
    held_out: dict[str, str]


@dataclass(frozen=True)
class LedgerReport:
    """A run's ledger as people read it.

    Attributes
    ----------
    table : DataFrame
        A row per kind of release, ε to four significant digits.
    remarks : tuple of str
        On single kinds of releases.
    together : str
        What holds for one record over all cases; empty for a single case.
    """

    run: str
    delta: float
    table: pd.DataFrame
    remarks: tuple[str, ...]
    cases: tuple[CaseVerdict, ...]
    together: str


def build_ledger_report(run: Run, delta: float = DELTA) -> LedgerReport:
    """Return what was released in a run, and what then holds; ``delta`` is of all releases.

    Raises
    ------
    RequestError
        As :func:`pudica.analysis.privacy.privacy`.
    """
    frame = privacy(run.directory, delta)
    held_out = verdict_on_held_out(run.directory, delta)
    cases = tuple(
        _describe_case(
            case,
            frame[frame["case"] == case],
            guarantee,
            {name: _omit_unit(found) for (of, name), found in held_out.items() if of == case},
        )
        for case, guarantee in verdict(run.directory, delta).items()
    )
    together = _omit_unit(verdict_of_all(run.directory, delta)) if len(cases) > 1 else ""
    remarks = tuple(dict.fromkeys(_list_remarks(run, frame)))
    return LedgerReport(run.name, delta, _format_table(frame), remarks, cases, together)


def describe_competition(run: Run) -> Iterator[str]:
    """Yield sentences on what a THEMIS competition promises, and on what its noise was worth."""
    yield NO_PROMISE
    release = competition_settings(run).release
    if release.compare:
        yield COMPARED
    if not release.secret:
        yield SEEDED
    measured = select(themis_protection([run]), release="trained")
    several = len(measured[["case", "M"]].drop_duplicates()) > 1
    for row in measured.dropna(subset="examiner_accuracy").to_dict("records"):
        where = f"In {row['case']}, released at M = {row['M']:g}, an" if several else "An"
        yield (
            f"{where} examiner, a network that stands in for a person who labels the noisy test "
            f"images, is right on {row['examiner_accuracy']:.2f} % of them after denoising."
        )


def _list_remarks(run: Run, frame: pd.DataFrame) -> Iterator[str]:
    if run.disguise:
        yield f"images: disguised in advance, {run.disguise}: no guarantee"
    for row in frame.to_dict("records"):
        mechanism = "" if row["mechanism"] == "none" else f", {row['mechanism']}"
        yield from (f"{row['what']}{mechanism}: {reason}" for reason in row["reasons"])


def _describe_case(
    case: str, rows: pd.DataFrame, guarantee: Guarantee, held_out: dict[str, str]
) -> CaseVerdict:
    claimed = rows[rows["records"].isin(COUNTED) & (rows["claimed"] != "nothing")]
    releases = zip(claimed["claimed"], claimed["what"], claimed["mechanism"], strict=True)
    claims = [
        f"{claim} ({what}, {'all releases' if mechanism == DP_SGD else 'one release'})"
        for claim, what, mechanism in releases
    ]
    return CaseVerdict(
        case=case,
        record="a served image" if (rows["records"] == "served").any() else "a training record",
        claimed=tuple(dict.fromkeys(claims or ["nothing"])),
        holds=_omit_unit(guarantee),
        reasons=guarantee.reasons,
        held_out=held_out,
    )


def _omit_unit(guarantee: Guarantee) -> str:
    return str(guarantee).removesuffix(f" for one {guarantee.unit}")


def _format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's narrow columns, with ε to four significant digits."""
    shown = frame[["case", "what", "records", "nodes", "count", "mechanism", "randomness"]].copy()
    single = zip(frame["record_epsilon"], frame["record_delta"], strict=True)
    shown["single"] = [_format_epsilon(epsilon, delta) for epsilon, delta in single]
    shown = shown.rename(columns={"count": "at most"})
    shown["composed"] = frame["composed_epsilon"].map(_format_epsilon)
    shown["RDP"] = frame["composed_rdp"].map(_format_epsilon)
    return shown


def _format_epsilon(epsilon: float | None, delta: float | None = 0.0) -> str:
    if epsilon is None or math.isnan(epsilon):
        return "-"
    return f"{epsilon:.4g} (δ = {delta:.4g})" if delta else f"{epsilon:.4g}"
