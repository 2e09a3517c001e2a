"""The table of attacks on what crossed, for systems whose nodes release images again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from pudica.analysis.attacks.base import CLEAR
from pudica.analysis.runs import Run, RunPaths, find_value, open_runs_of, select
from pudica.analysis.spread import average_seeds
from pudica.analysis.summary import build_table

STAGE = "attack "
RATES = {"success": "", "low": "_low", "high": "_high"}
LABELS = ("run", "case", "attack", "releases")
NUMBERS = (*RATES, "chance", "in_the_clear", "psnr", "psnr_of_the_mean")


def release_attacks(system: str, runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return how far attacks on releases came, beside chance and the positive control.

    Parameters
    ----------
    system : str
        Whose runs; errors are raised as by :func:`pudica.analysis.load`.
    spread : bool
        Whether seeds are taken together as by :func:`pudica.analysis.split_accuracy`.

    Returns
    -------
    DataFrame
        A row per run, case, attack and number of ``releases`` that it saw of each image: in per
        cent of the images, ``success``, how often the right one was picked out (``labels``: its
        class, all classes counting the same; ``label-inference``: whether a class is there), with
        its 95 % interval over images ``low`` to ``high``, ``chance``, and ``in_the_clear``, the
        same where nothing protects, of all releases; in dB, ``psnr`` of images that were drawn, and
        ``psnr_of_the_mean`` image, which needs no attack.
    """
    opened = open_runs_of(system, runs)
    rows = [row for run in opened for row in _rows(run)]
    frame = build_table(rows, LABELS, NUMBERS)
    return average_seeds(frame, opened, ["case", "attack", "releases"], spread)


def release_tables(system: str, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the table by its title, if anything was attacked."""
    found = release_attacks(system, runs).dropna(axis="columns", how="all")
    return {"How far attacks on what crossed come (%)": found} if len(found) else {}


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    stages = run.frame["stage"][run.frame["metric"] == "releases"].drop_duplicates()
    for stage in stages[stages.str.startswith(STAGE)]:
        measured = select(run.frame, stage=stage)
        for case in measured["case"].drop_duplicates():
            own = select(measured, case=case)
            releases = int(find_value(own, metric="releases") or 1)
            for suffix, count in {"_once": 1, "": releases}.items():
                if find_value(own, metric=f"success{suffix}") is not None:
                    labels = {"run": run.name, "case": case, "attack": stage.removeprefix(STAGE)}
                    yield {**labels, "releases": count, **_measurements(own, suffix)}


def _measurements(own: pd.DataFrame, suffix: str) -> dict[str, float | None]:
    rates = {name: f"success{end}{suffix}" for name, end in RATES.items()}
    per_cent = {**rates, "chance": "chance", "in_the_clear": f"success{CLEAR}"}
    decibels = {"psnr": f"psnr{suffix}", "psnr_of_the_mean": "psnr_of_the_mean"}
    return {
        **{name: find_value(own, 100, metric=metric) for name, metric in per_cent.items()},
        **{name: find_value(own, metric=metric) for name, metric in decibels.items()},
    }
