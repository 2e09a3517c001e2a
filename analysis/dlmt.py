"""Tables and figures of DLMT runs, the tables beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pudica.analysis.drawing import COLOURS, draw_curves, draw_image_rows, new_figure, stretch
from pudica.analysis.published import load_paper_table
from pudica.analysis.runs import Run, RunPaths, find_value, open_runs_of, select
from pudica.analysis.spread import average_seeds, drop_columns, keep_columns
from pudica.analysis.summary import build_table
from pudica.clients.shields.disguises import KeyedDisguise
from pudica.clients.shields.disguises.breaks import (
    COMMON_DIVISOR,
    KNOWN_PAIR,
    guess_offsets,
    invert_affine,
    recover_factors,
)
from pudica.models.files import load_tensors
from pudica.strategies.core.session import CLOUD
from pudica.strategies.dlmt.config import DlmtConfig
from pudica.strategies.dlmt.measures import BY_IMAGES, BY_MODEL, DISGUISED, STANDARDISED

LABELS = ("run", "experiment", "case", "shield", "key", "train")
RATES = {
    "VP": {"metric": "visual_privacy", "normalised": BY_MODEL, "view": DISGUISED},
    "VP_by_images": {"metric": "visual_privacy", "normalised": BY_IMAGES, "view": DISGUISED},
    "VP_standardised": {"metric": "visual_privacy", "normalised": BY_MODEL, "view": STANDARDISED},
    "MM": {"metric": "misusability", "normalised": BY_MODEL},
    "MM_by_images": {"metric": "misusability", "normalised": BY_IMAGES},
}
"""The columns of rates, and the tags of their measurements."""
PUBLISHED = ("MA", "VP", "MM")
LIKENESS = ("psnr", "ssim", "psnr_standardised", "ssim_standardised")
ATTACKS = {
    "m": (COMMON_DIVISOR, (5, 10, 20)),
    "b_minimum": ("minimum", (20, 50, 100, 200, 400)),
    "b_mid_range": ("mid-range", (20, 50, 100, 200, 400)),
}
SHOWN_BREAKS = ("m_5", "m_20", "b_minimum_20", "b_minimum_400", "b_mid_range_400", "known_pair")
# Paper 001's names of its baselines. Its single block for the whole image leaves nothing to
# permute, so the size of permuted blocks is ours.
IMAGE_SIDES = {"mnist": 28, "cifar10": 32}
BASELINES = {
    "Sharma(2)": "Sharma(N=0,no permutation,block=2)",
    "Sharma(2, noise=50)": "Sharma(N=50,no permutation,block=2)",
    "Sharma({side}, permute=4)": "Sharma(N=0,permutation,block=whole image)",
    "Sharma({side}, noise=50, permute=4)": "Sharma(N=50,permutation,block=whole image)",
}
MARKS = {
    "MA": ("MA: accuracy on disguised images", "o", COLOURS[0]),
    "VP": ("VP: an examiner's errors", "s", COLOURS[2]),
    "VP_standardised": ("VP after z-scores, no key", "x", COLOURS[1]),
    "MM": ("MM: accuracy on plain images", "^", COLOURS[3]),
}
"""Label, marker and colour of each measure in the figure."""
HALF = 4
"""Number of images to show as received, and as recovered."""


def dlmt_accuracy(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return each case's accuracy on disguised test images: Table II of paper 001.

    Runs are named, and errors raised, as by :func:`pudica.analysis.load`.
    Runs that differ only by their seed are taken together, unless ``spread`` is False; see
    :func:`pudica.analysis.spread.average_seeds` for the intervals ``…_ci`` and for ``n``.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case, shield, key, train``; accuracies in per
        cent: ``accuracy`` of the last epoch; ``best`` of all epochs, selected on the test images
        and so optimistic; ``published``, and the ``difference`` of ``accuracy`` from it, if the
        cloud trains and the paper has the disguise.
    """
    opened = open_runs_of("dlmt", runs)
    rows = [row for run in opened for row in _accuracy_rows(run)]
    frame = build_table(rows, LABELS, ("accuracy", "best", "published"))
    frame = frame.assign(difference=frame["accuracy"] - frame["published"])
    return average_seeds(frame, opened, ["case"], spread)


def dlmt_measures(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
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
    opened = open_runs_of("dlmt", runs)
    rows = [row for run in opened for row in _measure_rows(run)]
    rates = ("MA", "VP", "VP_by_images", "VP_standardised", "VP_plain", "MM", "MM_by_images")
    numbers = [*rates, *(f"{n}_published" for n in PUBLISHED), *LIKENESS]
    return average_seeds(build_table(rows, LABELS, numbers), opened, ["case"], spread)


def dlmt_breaks(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return how far the exact attacks of :mod:`pudica.clients.shields.disguises.breaks` get.

    Returns
    -------
    DataFrame
        A row per run and case that is a matrix transformation: ``run, experiment, case, shield,
        key, train``; ``search_space``: log10 of Eqs. (7) and (9), where they apply; the share of
        the key that is recovered exactly, in per cent: ``m_N`` by the greatest common divisor of N
        images, ``b_minimum_N`` and ``b_mid_range_N``, and ``known_pair`` from one known image.
    """
    opened = open_runs_of("dlmt", runs)
    rows = [row for run in opened for row in _break_rows(run)]
    found = [f"{name}_{n}" for name, (_, counts) in ATTACKS.items() for n in counts]
    frame = build_table(rows, LABELS, ["search_space", *found, "known_pair"])
    return average_seeds(frame, opened, ["case"], spread)


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    accuracy = dlmt_accuracy(runs)
    if accuracy["published"].isna().all():
        accuracy = drop_columns(accuracy, ["difference"])
    breaks = keep_columns(dlmt_breaks(runs), ["run", "case", *SHOWN_BREAKS, "search_space"])
    # A case is mostly called after its disguise.
    disguise = ["shield", "key", "train"]
    return {
        "Accuracy on disguised test images": accuracy.drop(columns=disguise),
        "What disguises cost and hide": dlmt_measures(runs).drop(columns=disguise),
        "How much of the key attacks find (%), by how many images they see": breaks.rename(
            columns=lambda name: name.replace("search_space", "log10_search_space")
        ),
    }


def methods(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each case's row of :func:`pudica.analysis.compare`."""
    settings = _case_settings(run)
    for row in dlmt_accuracy([run]).to_dict("records"):
        macs = find_value(run.frame, 1e-6, stage="costs", metric="edge_macs", case=row["case"])
        private = settings[row["case"]].dp
        noise = f", DP-SGD, ε = {private.epsilon:g}" if private else ""
        yield {
            "case": row["case"],
            "method": f"{row['shield'] or 'no disguise'}, {row['train']}{noise}",
            "accuracy": row["accuracy"],
            "edge_mmacs": macs,
        }


def _case_settings(run: Run) -> dict[str, DlmtConfig]:
    return run.section("dlmt", DlmtConfig).each_case()


def _iterate_cases(run: Run) -> Iterator[tuple[dict[str, Any], pd.DataFrame, DlmtConfig]]:
    """Yield each case's labels, its measurements over all owners, and its settings."""
    for case, settings in _case_settings(run).items():
        labels = {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "shield": settings.shield or run.disguise,
            "key": settings.key if settings.shield else "",
            "train": settings.train,
        }
        yield labels, select(run.frame, node=CLOUD, case=case), settings


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    for labels, rows, settings in _iterate_cases(run):
        tests = select(rows, stage="test", metric="accuracy")
        if tests.empty:  # the run may be in progress
            continue
        values = 100 * tests.sort_values("round")["value"]
        yield labels | {
            "accuracy": float(values.iloc[-1]),
            "best": float(values.max()),
            "published": _find_published(run, settings, "accuracy"),
        }


def _measure_rows(run: Run) -> Iterator[dict[str, Any]]:
    accuracy = {row["case"]: row["accuracy"] for row in _accuracy_rows(run)}
    examiner = accuracy.get(run.section("dlmt", DlmtConfig).examining() or "")
    for labels, every, settings in _iterate_cases(run):
        rows = select(every, stage="measures")
        if rows.empty:
            continue
        yield {
            **labels,
            "MA": accuracy.get(labels["case"]),
            "VP_plain": None if examiner is None else 100 - examiner,
            **{name: find_value(rows, 100, **tags) for name, tags in RATES.items()},
            **{f"{name}_published": _find_published(run, settings, name) for name in PUBLISHED},
            **{name: find_value(rows, metric=name) for name in LIKENESS},
        }


def _break_rows(run: Run) -> Iterator[dict[str, Any]]:
    for labels, every, _ in _iterate_cases(run):
        rows = select(every, stage="breaks", metric="found")
        if rows.empty:
            continue
        yield {
            **labels,
            "search_space": find_value(every, metric="search_space"),
            **{
                f"{name}_{count}": find_value(rows, 100, attack=attack, images=count)
                for name, (attack, counts) in ATTACKS.items()
                for count in counts
            },
            "known_pair": find_value(rows, 100, attack=KNOWN_PAIR),
        }


def _find_published(run: Run, settings: DlmtConfig, what: str) -> float | None:
    """Return the published value of a case: ``accuracy`` (Table II) or ``MA, VP, MM`` (III)."""
    data = run.settings["data"]["name"]
    if data not in IMAGE_SIDES or settings.train != "central" or settings.owners > 1:
        return None
    baselines = {n.format(side=IMAGE_SIDES[data]): paper for n, paper in BASELINES.items()}
    name = baselines.get(settings.shield, settings.shield) if settings.shield else "original"
    # An accuracy that is not in Table II may be in Table III, as MA.
    places = [("dlmt_table2", "transform", "accuracy")] if what == "accuracy" else []
    places += [("dlmt_table3", "mechanism", "ma" if what == "accuracy" else what.lower())]
    for file, key, column in places:
        table = load_paper_table(file).set_index(key)
        if name in table.index:
            value = float(table[f"{data}_{column}"][name])
            return None if math.isnan(value) else value
    return None


# ---------------------------------------------------------------------------- figures


def figures(run: Run) -> Iterator[tuple[str, Figure | None]]:
    """Yield name and figure for everything that was measured."""
    yield "training", _draw_training(run)
    yield "measures", _draw_measures(run)
    yield "seen", _draw_received(run)


def _draw_training(run: Run) -> Figure | None:
    """Draw training loss and accuracy on disguised test images, a line per case."""
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "accuracy on disguised\ntest images (%)": 100 * run.curves("test", "accuracy"),
    }
    cases = _case_settings(run)
    for label, table in panels.items():
        # A round may have several epochs, and cases may differ in that.
        curves = {}
        for case, settings in cases.items():
            each = settings.local_epochs if settings.train == "federated" else 1
            if case in table:
                curves[case] = table[case].set_axis(table.index * each).dropna()
        panels[label] = pd.DataFrame(curves)
    title = f"Training on disguised images — {run.name}"
    return draw_curves(panels, list(cases), "epochs (of each owner)", title)


def _draw_measures(run: Run) -> Figure | None:
    """Draw what each disguise costs and hides: MA, VP, VP after z-scores, MM."""
    table = dlmt_measures([run])
    if table.empty:
        return None
    figure = new_figure(7.5, 1.6 + 0.3 * len(table), f"What disguises cost and hide — {run.name}")
    axes = figure.subplots()
    places = np.arange(len(table))[::-1]
    hollow: dict[str, Any] = {"clip_on": False, "markerfacecolor": "none", "markeredgewidth": 1.6}
    for column, (label, marker, colour) in MARKS.items():
        axes.plot(table[column], places, marker, color=colour, label=label, **hollow)
    plain = select(dlmt_accuracy([run]), shield="")["accuracy"].tolist()
    if plain:
        axes.axvline(plain[0], color="#999999", linestyle=(0, (5, 3)), label="MA, plain")
    axes.set_yticks(places, table["case"])
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_xlabel("per cent")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_received(run: Run) -> Figure | None:
    """Draw what the cloud receives, and what it recovers without a key, a row per case."""
    loaded = ((case, _load_received(run, case)) for case in _case_settings(run))
    rows = {case: images for case, images in loaded if images is not None}
    if not rows:
        return None
    if all(len(images) == HALF for images in rows.values()):
        return draw_image_rows(rows, f"What the cloud receives — {run.name}")
    halves = "Left: what the cloud receives. Right: what it makes of that without a key"
    title = f"{halves} — {run.name}"
    if any(len(images) == HALF for images in rows.values()):
        note = "Rows without a right half: no matrix transformation, so nothing that is undone so."
        title = f"{title}\n{note}"
    for case, images in rows.items():
        if len(images) == HALF:
            rows[case] = np.concatenate([images, np.full_like(images, np.nan)])
    return draw_image_rows(rows, title)


def _load_received(run: Run, case: str) -> np.ndarray | None:
    """Return the images received, and recovered if any were, (N, C, H, W) in [0, 1]."""
    kept = load_tensors(run.directory / case / "seen.safetensors")
    if kept is None:
        return None
    shown = stretch(kept[0]["received"].numpy()[:HALF], 1e-9)
    undone = kept[0]["undone"].numpy()[:HALF] / 255 if "undone" in kept[0] else shown[:0]
    return np.concatenate([shown, undone])


def draw_breaks(disguise: KeyedDisguise, plain: NDArray[np.uint8], shown: int = 8) -> Figure:
    """Draw images plain, disguised, and as recovered from disguised ones alone.

    Parameters
    ----------
    disguise : KeyedDisguise
        A composition of MAT, MMT and Rise.
    plain : uint8 ndarray of shape (N, C, H, W)
        All of them are known to the attacker in disguise.
    shown : int
        Number of images to draw.
    """
    disguised = disguise.protect(torch.from_numpy(plain)).long().numpy()
    first = disguised[:shown]
    rows = {"plain": plain[:shown] / 255, "disguised": stretch(first, 1)}
    for n in (20, 100, len(plain)):
        if n <= len(plain):
            m = recover_factors(disguised[:n])
            images = invert_affine(first, m, guess_offsets(disguised[:n], m, "mid-range"))
            rows[f"undone, {n:,} seen"] = images / 255
    return draw_image_rows(rows, f"{disguise.key.notation} without its key")
