"""The figures of DLMT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pudica.analysis.dlmt import case_settings, dlmt_accuracy, dlmt_measures
from pudica.analysis.drawing import draw_curves, draw_image_rows, new_figure
from pudica.analysis.runs import Run
from pudica.models.files import load_tensors
from pudica.strategies.dlmt.config import DlmtConfig

HALF = 4
"""Number of images to show as received, and as recovered."""


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for everything that was measured."""
    drawn = {"training": draw_training, "measures": draw_measures, "seen": draw_received}
    for name, draw in drawn.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def draw_training(run: Run) -> Figure | None:
    """Draw training loss and accuracy on disguised test images, a line per case."""
    cases = case_settings(run)
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "accuracy on disguised\ntest images (%)": 100 * run.curves("test", "accuracy"),
    }
    # A round may have several epochs, and cases may differ in that.
    epochs = {case: _epochs_per_round(settings) for case, settings in cases.items()}
    by_epoch = {label: _index_by_epoch(table, epochs) for label, table in panels.items()}
    title = f"Training on disguised images — {run.name}"
    return draw_curves(by_epoch, list(cases), "epochs (of each owner)", title)


def _epochs_per_round(settings: DlmtConfig) -> int:
    return settings.local_epochs if settings.train == "federated" else 1


def _index_by_epoch(table: pd.DataFrame, epochs: Mapping[str, int]) -> pd.DataFrame:
    """Reindex curves by epoch instead of round."""
    curves = {
        case: table[case].set_axis(table.index * each).dropna()
        for case, each in epochs.items()
        if case in table
    }
    return pd.DataFrame(curves)


def draw_measures(run: Run) -> Figure | None:
    """Draw what each disguise costs and hides: MA, VP, VP after z-scores, MM."""
    table = dlmt_measures([run])
    if table.empty:
        return None
    figure = new_figure(7.5, 1.6 + 0.3 * len(table), f"What disguises cost and hide — {run.name}")
    axes = figure.subplots()
    places = np.arange(len(table))[::-1]
    for (column, label), (marker, colour) in zip(SHOWN.items(), MARKS, strict=True):
        axes.plot(
            table[column],
            places,
            marker,
            color=colour,
            label=label,
            clip_on=False,
            markerfacecolor="none",
            markeredgewidth=1.6,
        )
    accuracy = dlmt_accuracy([run])
    plain = accuracy[accuracy["shield"] == ""]["accuracy"].tolist()
    if plain:
        axes.axvline(plain[0], color="#999999", linestyle=(0, (5, 3)), label="MA, plain")
    axes.set_yticks(places, table["case"])
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_xlabel("per cent")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    return figure


SHOWN = {
    "MA": "MA: accuracy on disguised images",
    "VP": "VP: an examiner's errors",
    "VP_standardised": "VP after z-scores, no key",
    "MM": "MM: accuracy on plain images",
}
MARKS = (("o", "#0072B2"), ("s", "#009E73"), ("x", "#D55E00"), ("^", "#CC79A7"))


def draw_received(run: Run) -> Figure | None:
    """Draw what the cloud receives, and what it recovers without a key, a row per case."""
    rows = {
        case: seen for case in case_settings(run) if (seen := _load_received(run, case)) is not None
    }
    if not rows:
        return None
    if all(len(images) == HALF for images in rows.values()):
        return draw_image_rows(rows, f"What the cloud receives — {run.name}")
    halves = "Left: what the cloud receives. Right: what it makes of that without a key"
    note = "Rows without a right half: no matrix transformation, so nothing that is undone so."
    title = f"{halves} — {run.name}"
    full = all(len(images) > HALF for images in rows.values())
    blank = np.ones_like(next(iter(rows.values()))[:HALF])
    wide = {
        case: images if len(images) > HALF else np.concatenate([images, blank])
        for case, images in rows.items()
    }
    return draw_image_rows(wide, title if full else f"{title}\n{note}")


def _load_received(run: Run, case: str) -> np.ndarray | None:
    kept = load_tensors(run.directory / case / "seen.safetensors")
    if kept is None:
        return None
    received = kept[0]["received"].numpy()[:HALF]
    low, high = (end(received, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    shown = (received - low) / np.maximum(high - low, 1e-9)
    undone = kept[0]["undone"].numpy()[:HALF] / 255 if "undone" in kept[0] else shown[:0]
    return np.concatenate([shown, undone])
