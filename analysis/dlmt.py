"""Tables of DLMT runs, beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica.analysis.layout import drop_run_names
from pudica.analysis.runs import Run, RunPaths, open_runs_of
from pudica.clients.shields.disguises.breaks import COMMON_DIVISOR, KNOWN_PAIR
from pudica.strategies.core.session import CLOUD
from pudica.strategies.dlmt.config import DlmtConfig
from pudica.strategies.dlmt.measures import BY_IMAGES, BY_MODEL, DISGUISED, STANDARDISED

TAGS = ("view", "normalised", "attack", "images")
SETTINGS = ["run", "experiment", "case", "shield", "key", "train"]
RATES = ("MA", "VP", "VP_by_images", "VP_standardised", "VP_plain", "MM", "MM_by_images")
LIKENESS = ("psnr", "ssim", "psnr_standardised", "ssim_standardised")
ATTACKS = {
    "m": (COMMON_DIVISOR, (5, 10, 20)),
    "b_minimum": ("minimum", (20, 50, 100, 200, 400)),
    "b_mid_range": ("mid-range", (20, 50, 100, 200, 400)),
}
# Paper 001's names of its baselines. Its single block for the whole image leaves nothing to
# permute, so the size of permuted blocks is ours.
IMAGE_SIDES = {"mnist": 28, "cifar10": 32}
BASELINES = {
    "Sharma(2)": "Sharma(N=0,no permutation,block=2)",
    "Sharma(2, noise=50)": "Sharma(N=50,no permutation,block=2)",
    "Sharma({side}, permute=4)": "Sharma(N=0,permutation,block=whole image)",
    "Sharma({side}, noise=50, permute=4)": "Sharma(N=50,permutation,block=whole image)",
}


def dlmt_accuracy(runs: RunPaths) -> pd.DataFrame:
    """Return each case's accuracy on disguised test images: Table II of paper 001.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case, shield, key, train``; accuracies in per
        cent: ``accuracy`` of the last epoch; ``best`` of all epochs, selected on the test images
        and so optimistic; ``published``, and the ``difference`` of ``accuracy`` from it, if the
        cloud trains and the paper has the disguise.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`.
    """
    rows = [row for run in open_runs_of("dlmt", runs) for row in _accuracy_rows(run)]
    numbers = ["accuracy", "best", "published"]
    frame = pd.DataFrame(rows, columns=[*SETTINGS, *numbers])
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    return frame.assign(difference=frame["accuracy"] - frame["published"])


def dlmt_measures(runs: RunPaths) -> pd.DataFrame:
    """Return what each disguise costs and hides: Table III of paper 001 and further measures.

    Returns
    -------
    DataFrame
        A row per run and case with a disguise: ``run, experiment, case, shield, key, train``; in
        per cent ``MA``, ``VP`` and ``MM`` as the paper has them, with ``_published``;
        ``VP_by_images``, ``MM_by_images`` with foreign images normalised by statistics of
        their own kind, see :mod:`pudica.strategies.dlmt.measures`; ``VP_standardised`` after
        z-scores of each pixel, without a key; ``VP_plain``: the examiner's errors on plain images,
        a lower limit for any disguise; ``psnr`` (dB) and ``ssim`` of disguised images, and after
        z-scores.
    """
    rows = [row for run in open_runs_of("dlmt", runs) for row in _measure_rows(run)]
    published = [f"{name}_published" for name in ("MA", "VP", "MM")]
    numbers = [*RATES, *published, *LIKENESS]
    frame = pd.DataFrame(rows, columns=[*SETTINGS, *numbers])
    return frame.astype(dict.fromkeys(numbers, "float64"))


def dlmt_breaks(runs: RunPaths) -> pd.DataFrame:
    """Return how far the exact attacks of :mod:`pudica.clients.shields.disguises.breaks` get.

    Returns
    -------
    DataFrame
        A row per run and case that is a matrix transformation: ``run, experiment, case, shield,
        key, train``; ``search_space``: log10 of Eqs. (7) and (9), where they apply; the share of
        the key that is recovered exactly, in per cent: ``m_N`` by the greatest common divisor of N
        images, ``b_minimum_N`` and ``b_mid_range_N``, and ``known_pair`` from one known image.
    """
    rows = [row for run in open_runs_of("dlmt", runs) for row in _break_rows(run)]
    found = [f"{name}_{n}" for name, (_, counts) in ATTACKS.items() for n in counts]
    numbers = ["search_space", *found, "known_pair"]
    frame = pd.DataFrame(rows, columns=[*SETTINGS, *numbers])
    return frame.astype(dict.fromkeys(numbers, "float64"))


def case_settings(run: Run) -> dict[str, DlmtConfig]:
    """Return the settings of each case of a run.

    Raises
    ------
    RequestError
        If another version of Pudica, with other settings, wrote the run.
    """
    return run.section("dlmt", DlmtConfig).each_case()


def _iterate_cases(run: Run) -> Iterator[tuple[dict[str, Any], pd.DataFrame, DlmtConfig]]:
    """Yield each case's labels, its measurements over all owners, and its settings."""
    rows = run.frame[run.frame["node"] == CLOUD]
    # Tags without any measurement are missing columns.
    rows = rows.reindex(columns=[*rows.columns, *(tag for tag in TAGS if tag not in rows)])
    for case, settings in case_settings(run).items():
        labels = {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "shield": settings.shield or run.disguise,
            "key": settings.key if settings.shield else "",
            "train": settings.train,
        }
        yield labels, rows[rows["case"] == case], settings


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    for labels, rows, settings in _iterate_cases(run):
        tests = rows[(rows["stage"] == "test") & (rows["metric"] == "accuracy")]
        if tests.empty:  # the run may be in progress
            continue
        values = 100 * tests.sort_values("round")["value"]
        published = _published_value(run, settings, "accuracy")
        yield labels | {
            "accuracy": float(values.iloc[-1]),
            "best": float(values.max()),
            "published": published,
        }


def _measure_rows(run: Run) -> Iterator[dict[str, Any]]:
    accuracy = {row["case"]: row["accuracy"] for row in _accuracy_rows(run)}
    examiner = accuracy.get(run.section("dlmt", DlmtConfig).examining() or "")
    for labels, every, settings in _iterate_cases(run):
        rows = every[every["stage"] == "measures"]
        if rows.empty:
            continue
        yield labels | {
            "MA": accuracy.get(labels["case"]),
            "VP": _rate(rows, "visual_privacy", BY_MODEL, DISGUISED),
            "VP_by_images": _rate(rows, "visual_privacy", BY_IMAGES, DISGUISED),
            "VP_standardised": _rate(rows, "visual_privacy", BY_MODEL, STANDARDISED),
            "VP_plain": None if examiner is None else 100 - examiner,
            "MM": _rate(rows, "misusability", BY_MODEL),
            "MM_by_images": _rate(rows, "misusability", BY_IMAGES),
            **{
                f"{name}_published": _published_value(run, settings, name)
                for name in ("MA", "VP", "MM")
            },
            **{name: _value(rows[rows["metric"] == name]) for name in LIKENESS},
        }


def _break_rows(run: Run) -> Iterator[dict[str, Any]]:
    for labels, every, _ in _iterate_cases(run):
        rows = every[(every["stage"] == "breaks") & (every["metric"] == "found")]
        if rows.empty:
            continue
        found = {
            f"{name}_{count}": _percent(
                rows[(rows["attack"] == attack) & (rows["images"] == count)]
            )
            for name, (attack, counts) in ATTACKS.items()
            for count in counts
        }
        yield labels | {
            "search_space": _value(every[every["metric"] == "search_space"]),
            **found,
            "known_pair": _percent(rows[rows["attack"] == KNOWN_PAIR]),
        }


def _rate(rows: pd.DataFrame, metric: str, normalised: str, view: str = "") -> float | None:
    """Return a rate of Table III in per cent."""
    chosen = (rows["metric"] == metric) & (rows["normalised"] == normalised)
    if view:
        chosen &= rows["view"] == view
    return _percent(rows[chosen])


def _value(rows: pd.DataFrame) -> float | None:
    return float(rows["value"].iloc[-1]) if len(rows) else None


def _percent(rows: pd.DataFrame) -> float | None:
    return 100 * float(rows["value"].iloc[-1]) if len(rows) else None


@cache
def _load_paper_table(table: str, key: str) -> pd.DataFrame:
    with (files("pudica.analysis") / "paper" / f"dlmt_{table}.csv").open() as file:
        return pd.read_csv(file).set_index(key)


def _published_value(run: Run, settings: DlmtConfig, what: str) -> float | None:
    """Return the published value of a case: ``accuracy`` (Table II) or ``MA, VP, MM`` (III)."""
    data = run.settings["data"]["name"]
    if data not in IMAGE_SIDES or settings.train != "central" or settings.owners > 1:
        return None
    table = (
        _load_paper_table("table2", "transform")
        if what == "accuracy"
        else _load_paper_table("table3", "mechanism")
    )
    name = _paper_name(settings.shield, IMAGE_SIDES[data])
    if name not in table.index:
        if what != "accuracy":
            return None
        table, what = _load_paper_table("table3", "mechanism"), "ma"
    if name not in table.index:
        return None
    value = float(table[f"{data}_{what.lower()}"][name])
    return None if math.isnan(value) else value


def _paper_name(shield: str | None, side: int) -> str:
    """Return the paper's name of a disguise."""
    baselines = {ours.format(side=side): theirs for ours, theirs in BASELINES.items()}
    return baselines.get(shield, shield) if shield else "original"


SEARCH = "search_space"
SHOWN_BREAKS = ("m_5", "m_20", "b_minimum_20", "b_minimum_400", "b_mid_range_400", "known_pair")
DISGUISE = ("shield", "key", "train")


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    found = {
        "Accuracy on disguised test images": dlmt_accuracy(runs),
        "What disguises cost and hide": dlmt_measures(runs),
        "How much of the key attacks find (%), by how many images they see": _select_breaks(
            dlmt_breaks(runs)
        ),
    }
    if found["Accuracy on disguised test images"]["published"].isna().all():
        found["Accuracy on disguised test images"] = found[
            "Accuracy on disguised test images"
        ].drop(columns="difference")
    # A case is mostly called after its disguise.
    return drop_run_names(
        {t: f.drop(columns=[*DISGUISE], errors="ignore") for t, f in found.items()}, runs
    )


def _select_breaks(breaks: pd.DataFrame) -> pd.DataFrame:
    """Return what fits on a screen: each attack with the most images it is tried with."""
    return breaks[["run", "case", SEARCH, *SHOWN_BREAKS]].rename(
        columns={SEARCH: f"log10 {SEARCH}"}
    )
