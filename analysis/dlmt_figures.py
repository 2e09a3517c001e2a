"""The figures of DLMT."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from analysis.dlmt import dlmt_accuracy, dlmt_measures, settings_of
from analysis.drawing import draw_curves, draw_image_rows, new_figure
from analysis.runs import Run
from models.files import load_tensors

HALF = 4
"""Images of a case as they are received, and as many as they are undone."""


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield each figure that there are measurements for, with its name."""
    drawn = {"training": draw_training, "measures": draw_measures, "seen": draw_seen}
    for name, draw in drawn.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def draw_training(run: Run) -> Figure | None:
    """Draw training loss and accuracy on disguised test images, a line per case."""
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "accuracy on disguised\ntest images (%)": 100 * run.curves("test", "accuracy"),
    }
    title = f"Training on disguised images — {run.name}"
    return draw_curves(panels, list(settings_of(run)), "epochs or rounds", title)


def draw_measures(run: Run) -> Figure | None:
    """Draw what each disguise costs and hides: MA, VP, VP after z-scores, MM."""
    table = dlmt_measures([run])
    if table.empty:
        return None
    figure = new_figure(7.5, 1.6 + 0.3 * len(table), f"What disguises cost and hide — {run.name}")
    axes = figure.subplots()
    places = np.arange(len(table))[::-1]
    for (column, label), (marker, colour) in zip(SHOWN.items(), MARKS, strict=True):
        axes.plot(table[column], places, marker, color=colour, label=label, clip_on=False)
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
MARKS = (("o", "#0072B2"), ("s", "#009E73"), ("X", "#D55E00"), ("^", "#CC79A7"))


def draw_seen(run: Run) -> Figure | None:
    """Draw what the cloud receives, and what it makes of that without a key, a row per case."""
    rows = {case: seen for case in settings_of(run) if (seen := _seen(run, case)) is not None}
    if not rows:
        return None
    title = "Left: what the cloud receives. Right: what it makes of that without a key"
    return draw_image_rows(rows, title)


def _seen(run: Run, case: str) -> np.ndarray | None:
    kept = load_tensors(run.directory / case / "seen.safetensors")
    if kept is None:
        return None
    received = kept[0]["received"].numpy()[:HALF]
    low, high = (end(received, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    shown = (received - low) / np.maximum(high - low, 1e-9)
    undone = kept[0]["undone"].numpy()[:HALF] / 255 if "undone" in kept[0] else np.ones_like(shown)
    return np.concatenate([shown, undone])
